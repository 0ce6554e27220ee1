// Package localcluster runs storage nodes as separate processes on the loopback
// interface: for the demo, for trying things, and for tests that kill them.
package localcluster
