// Package store keeps what one shard holds: for each instrument a directory of
// sorted tables, a memtable of committed batches that no table holds yet, and
// the epoch and sequence checks that make every record be stored exactly once.
//
// One goroutine, the FSM's, calls the writers: SetOwned, OpenStream, Append and
// Snapshot. Everything else may be called from any goroutine; readers take no
// lock that a writer waits for. DESIGN.md has the file formats.
package store
