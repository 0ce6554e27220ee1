// Package e2e runs Countinghouse on a Kubernetes cluster and breaks it: while an
// exchange trades, members, nodes, volumes, certificates and the operator itself
// are taken away, and after each of them everything that was accepted must be
// stored once.
//
// The tests create a kind cluster, or use the one of E2E_KUBECONFIG. What they may be told:
//
//	E2E_KUBECONFIG   a cluster that is there; nodes are then not stopped or paused
//	E2E_IMAGE        an image that this cluster can pull, in place of one that is built
//	E2E_TRADER_IMAGE as E2E_IMAGE, for the program in trader
//	KIND_NODE_IMAGE  the node image of the kind cluster
//	E2E_CLUSTER      the name of the kind cluster, default countinghouse-e2e; one that is there is used and stays
//	E2E_KEEP         if set, the kind cluster stays
//	E2E_KILLS        how often a leader is killed, default 20
//	E2E_OUT          where figures and, after a failure, logs are written; default out
package e2e
