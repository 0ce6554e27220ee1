package fire

import (
	"fmt"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/record"
)

// kind is what a client asked for.
type kind uint8

const (
	opOpen   kind = iota // OpenStream
	opAppend             // one batch
	opState              // leader read of epoch, last seq and chain
	opScan               // leader read of records up to the last
)

// outcome is what it was told.
type outcome uint8

const (
	unknown    outcome = iota // no answer, or one that leaves open whether it had an effect
	done                      // opened, stored, read
	duplicate                 // CODE_DUPLICATE
	gap                       // CODE_GAP
	fenced                    // CODE_FENCED
	notOwner                  // CODE_NOT_OWNER
	took                      // by resolve: unknown to the client, but it had an effect
	mayHave                   // by resolve: one of several equal ones had an effect
	outcomeEnd                // not an outcome
)

var (
	kindNames    = [...]string{"open", "append", "state", "scan"}
	outcomeNames = [outcomeEnd]string{"unknown", "done", "duplicate", "gap", "fenced", "not owner", "took effect", "may have taken effect"}
)

// op is one operation of a client on one instrument, as the client saw it.
type op struct {
	client     string
	kind       kind
	instrument string
	call, ret  time.Duration // since the history's begin

	// Asked for.
	epoch   uint64
	first   uint64
	records []byte // of a batch
	nonce   uint64 // of a batch; sent again, it is the same

	// Told.
	outcome  outcome
	gotEpoch uint64
	gotLast  uint64
	gotChain uint32
	content  []byte // of a scan; of an open, the last record
	reason   string // of an unknown outcome
}

func (o *op) lastSeq() uint64 { return o.first + uint64(len(o.records)/record.Size) - 1 }

func (o *op) String() string {
	what := ""
	switch o.kind {
	case opOpen:
		what = fmt.Sprintf("epoch %s", epochName(o.epoch))
	case opAppend:
		what = fmt.Sprintf("epoch %s seq %d-%d nonce %d", epochName(o.epoch), o.first, o.lastSeq(), o.nonce)
	case opScan:
		what = fmt.Sprintf("from %d", o.first)
	}
	answer := fmt.Sprintf("%s epoch %s last %d chain %08x", outcomeNames[o.outcome], epochName(o.gotEpoch), o.gotLast, o.gotChain)
	if o.outcome == unknown {
		answer = "unknown: " + o.reason
	}
	return fmt.Sprintf("%s %s %s %s [%s, %s] -> %s", o.instrument, o.client, kindNames[o.kind], what, o.call, o.ret, answer)
}

// An epoch is incarnation<<32 | session.
const sessionBits = 32

func epochName(e uint64) string { return fmt.Sprintf("%d.%d", e>>sessionBits, e&(1<<sessionBits-1)) }

// history collects operations from any goroutine.
type history struct {
	start time.Time
	mu    sync.Mutex
	ops   []*op
}

func newHistory() *history { return &history{start: time.Now()} }

func (h *history) now() time.Duration { return time.Since(h.start) }

// begin returns o with the time of its call.
func (h *history) begin(o op) *op {
	o.call = h.now()
	return &o
}

// end notes the time of the answer, which the caller has filled in, and keeps
// the operation.
func (h *history) end(o *op) {
	o.ret = h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

func (h *history) all() []*op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*op(nil), h.ops...)
}
