//go:build !race

package outbox

import "sync/atomic"

// release stores v in p, after all stores that the caller made before: whoever sees
// v sees those as well. Then it begins to fetch the cache lines of n slots, from the
// address ahead on, for writing; an address beyond the segment does no harm.
//
// atomic.Uint64.Store does more than that: it waits until the stores before it have
// reached the cache, which takes as long as a record costs otherwise. Every store of
// an amd64 is a release already, and the compiler moves none past a call of
// assembly. The race detector needs the other version.
//
//go:noescape
func release(p *atomic.Uint64, v uint64, ahead uintptr, n int)
