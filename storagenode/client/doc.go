// Package client talks to the shards of a cluster. It knows from the shard map
// which shard owns an instrument, finds the shard's leader, follows it when it
// changes, and retries what can succeed.
//
// Reads go to the leader and see everything that was acknowledged before the
// call. A read that names a member goes to that replica alone and may be behind;
// so replicas are compared with each other.
package client
