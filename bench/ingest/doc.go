// Package ingest measures durable ingest on three replicas that share this process
// and one disk: how many records a second are acknowledged, and how long a batch
// takes from its hand-over to its acknowledgement.
//
// Each system is a file of its own that opens a cluster; the driver is the same for
// all. A batch counts when the system says that a majority has it, on the terms that
// the system's description states.
package ingest
