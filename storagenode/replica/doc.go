// Package replica is one member of a shard: Raft over gRPC, the log, the state
// machine over the store, snapshots, membership and reads.
//
// Open brings a member up from its data directory. Proposals go in at
// ProposeBatch, OpenStream and SetOwned and come back when a quorum has them on
// disk and this member has applied them. Read pins the store for readers.
//
// A data directory holds:
//
//	IDENTITY        whose directory it is (JSON), written once
//	LOCK            locked while a process uses the directory
//	stable.db       Raft's term and vote
//	wal/ or log.db  the Raft log
//	CURRENT         name of the live store
//	store-nnnnnn/   the live store
//	snapshots/      the newest snapshot: META and data/
//	BALLAST         space to be given up when the disk is full
//
// DESIGN.md says how the known traps of the Raft library are closed.
package replica
