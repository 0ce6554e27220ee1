// Package fire holds a test only: the replicas of one shard in one process, with
// their real servers, Raft, log and store, on disks and a network that misbehave
// by a seeded plan, while writers, readers and membership changes go on. What the
// clients saw is checked for linearizability, and what the replicas hold for
// every acknowledged record, exactly once, in order. DESIGN.md says what is real,
// what is modelled, and what is left out.
package fire
