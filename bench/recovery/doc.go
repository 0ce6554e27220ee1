// Package recovery measures how soon a storage node is back after kill -9, how fast a
// replica without data gets a snapshot, and what flushes and snapshots cost those who
// write meanwhile. The node is a process of its own.
package recovery
