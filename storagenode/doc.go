// Package storagenode is the gRPC server of a storage node: ingest, queries and
// administration over one replica, next to the replica's own Raft traffic on the
// same port.
package storagenode
