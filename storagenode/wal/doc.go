// Package wal is the write-ahead log of a storage node: a raft.LogStore kept in
// preallocated, recycled segment files.
//
// Every StoreLogs is one contiguous write and one fdatasync. Frames carry a
// CRC32C that is salted per segment, so that what an earlier life of a recycled
// file left behind never passes for an entry. Open tells a torn write, which it
// cuts off, from damage to entries that were acknowledged, which it refuses.
// DESIGN.md states the formats, the invariants and the recovery argument.
package wal
