// Package identity says who is at the other end of a connection, and what they
// may do there.
//
// Every party holds a certificate whose only URI is its identity, such as
// spiffe://demo/exchange or spiffe://demo/node/futures. Both ends of a connection
// show theirs, and each verifies the other's against the authorities that it
// trusts at that moment. A server is recognised by its identity, not by a host
// name: addresses come from shard maps and from the hints of other nodes, a
// member may be reached under several of them, and none of them says to which
// shard whoever answers belongs. The identity does, and it is what matters.
//
// A Source reads a certificate, its key and the authorities from a directory and
// follows changes of the files. A connection lasts no longer than the certificate
// of its peer is valid and its authority is trusted.
package identity
