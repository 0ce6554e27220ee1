//go:build !amd64 || race

package outbox

import "sync/atomic"

// release stores v in p, after all stores that the caller made before.
func release(p *atomic.Uint64, v uint64, _ uintptr, _ int) { p.Store(v) }
