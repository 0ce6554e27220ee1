package fire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/countinghouse/countinghouse/record"
)

// checkTimeout bounds the search for an order of one run's operations. A history
// that needs longer counts as a finding.
const checkTimeout = 60 * time.Second

// state is an instrument as clients know it.
type state struct {
	epoch uint64
	last  uint64
	chain uint32
}

// step is the sequential specification: what an operation may be told in state s,
// and what it makes of it.
func (s state) step(o *op) (bool, state) {
	switch o.kind {
	case opOpen:
		return s.open(o)
	case opAppend:
		return s.append(o)
	case opState:
		return o.gotEpoch == s.epoch && o.gotLast == s.last && o.gotChain == s.chain, s
	default: // content is compared with the final stream
		return o.gotLast == s.last, s
	}
}

func (s state) open(o *op) (bool, state) {
	opened := s
	opened.epoch = o.epoch
	switch o.outcome {
	case done:
		return o.epoch > s.epoch && o.gotEpoch == o.epoch && o.gotLast == s.last, opened
	case took:
		return o.epoch > s.epoch, opened
	case fenced:
		return o.epoch <= s.epoch && o.gotEpoch == s.epoch && o.gotLast == s.last, s
	case notOwner:
		return s == state{}, s
	}
	return false, s
}

func (s state) append(o *op) (bool, state) {
	fits := o.epoch == s.epoch && o.first == s.last+1
	stored := state{epoch: s.epoch, last: o.lastSeq(), chain: crc32.Update(s.chain, record.Castagnoli, o.records)}
	switch o.outcome {
	case done:
		return fits && o.gotLast == o.lastSeq(), stored
	case took:
		return fits, stored
	case mayHave:
		if !fits {
			stored = s
		}
		return true, stored
	case duplicate:
		return o.epoch == s.epoch && o.lastSeq() <= s.last && o.gotLast == s.last, s
	case gap:
		return o.epoch == s.epoch && o.lastSeq() > s.last && o.first != s.last+1 && o.gotLast == s.last, s
	case fenced:
		return o.epoch != s.epoch && o.gotEpoch == s.epoch && o.gotLast == s.last, s
	case notOwner:
		return s == state{}, s
	}
	return false, s
}

var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(s, in, _ any) (bool, any) {
		ok, next := s.(state).step(in.(*op))
		return ok, next
	},
	DescribeOperation: func(in, _ any) string { return in.(*op).String() },
	DescribeState: func(s any) string {
		st := s.(state)
		return fmt.Sprintf("epoch %s last %d chain %08x", epochName(st.epoch), st.last, st.chain)
	},
}

// resolve finds out what became of the operations without an answer, so that the
// search need not try both ways for each. final is the stream as all replicas
// hold it after the last operation.
//
// A batch had an effect if its records, which no other batch has, are in final.
// An open had one if its epoch, which no other open has, is seen in the answer to
// any operation or in the batches of final. Those that left no trace are dropped:
// to have had no effect explains everything that was seen at least as well.
//
// What does change when such an operation is left out: nothing that was
// answered. What an answered operation saw is never taken out of the history, so
// an effect that some client saw and that final lacks is not explained away.
func resolve(ops []*op, final []byte) []*op {
	epochs, answered, pending := traces(ops, final)
	var out []*op
	for _, o := range ops {
		if o.outcome != unknown {
			out = append(out, o)
			continue
		}
		r := *o
		r.ret = math.MaxInt64
		switch {
		case o.kind == opOpen && epochs[o.epoch]:
			r.outcome = took
		case o.kind == opAppend && inStream(o, final) && !answered[o.nonce]:
			r.outcome = took
			if pending[o.nonce] > 1 {
				r.outcome = mayHave
			}
		default:
			continue
		}
		out = append(out, &r)
	}
	return out
}

// traces returns the epochs that somebody saw, the nonces of batches that were
// acknowledged, and how often each nonce was sent without an answer.
func traces(ops []*op, final []byte) (epochs, answered map[uint64]bool, pending map[uint64]int) {
	epochs, answered, pending = map[uint64]bool{}, map[uint64]bool{}, map[uint64]int{}
	for _, o := range ops {
		switch {
		case o.outcome == unknown && o.kind == opAppend:
			pending[o.nonce]++
			if inStream(o, final) {
				epochs[o.epoch] = true
			}
		case o.outcome == unknown:
		default:
			epochs[o.gotEpoch] = true
			if o.kind == opAppend && o.outcome == done {
				epochs[o.epoch], answered[o.nonce] = true, true
			}
			if o.kind == opAppend && (o.outcome == duplicate || o.outcome == gap) {
				epochs[o.epoch] = true // refused after the epoch was compared
			}
		}
	}
	return epochs, answered, pending
}

// inStream reports whether final holds the batch at its place.
func inStream(o *op, final []byte) bool {
	from, to := (o.first-1)*record.Size, o.lastSeq()*record.Size
	return o.first > 0 && to <= uint64(len(final)) && bytes.Equal(final[from:to], o.records)
}

// errLinearizable marks a history that no order explains.
var errLinearizable = errors.New("not linearizable")

// checkInstrument checks the operations on one instrument against each other and
// against the stream that all replicas hold in the end.
func checkInstrument(name string, ops []*op, final []byte) error {
	errs := []error{checkContents(ops, final), checkOnce(ops, final)}
	history := operations(resolve(ops, final))
	switch porcupine.CheckOperationsTimeout(model, history, checkTimeout) {
	case porcupine.Ok:
	case porcupine.Unknown:
		errs = append(errs, fmt.Errorf("no verdict within %s on %d operations", checkTimeout, len(history)))
	default:
		// Once more, and slower, to learn how far an order can be found.
		_, info := porcupine.CheckOperationsVerbose(model, history, checkTimeout)
		errs = append(errs, &linearizabilityError{info: info, history: history})
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("instrument %s: %w", name, err)
	}
	return nil
}

// linearizabilityError holds what is needed to draw the history.
type linearizabilityError struct {
	info    porcupine.LinearizationInfo
	history []porcupine.Operation
}

// Error names the operations around the one that could not be placed.
func (e *linearizabilityError) Error() string {
	longest := 0
	for _, partial := range e.info.PartialLinearizationsOperations()[0] {
		longest = max(longest, len(partial))
	}
	placed := map[*op]bool{}
	for _, partial := range e.info.PartialLinearizationsOperations()[0] {
		if len(partial) == longest {
			for _, p := range partial {
				placed[p.Input.(*op)] = true
			}
			break
		}
	}
	text := fmt.Sprintf("%v: of %d operations %d can be put in order; then come", errLinearizable, len(e.history), longest)
	shown := 0
	for _, h := range e.history {
		if o := h.Input.(*op); !placed[o] && shown < 10 {
			text += "\n\t" + o.String()
			shown++
		}
	}
	return text
}

// Unwrap lets errors.Is find errLinearizable.
func (e *linearizabilityError) Unwrap() error { return errLinearizable }

func operations(ops []*op) []porcupine.Operation {
	sort.SliceStable(ops, func(i, j int) bool { return ops[i].call < ops[j].call })
	clients := map[string]int{}
	out := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		if _, ok := clients[o.client]; !ok {
			clients[o.client] = len(clients)
		}
		out = append(out, porcupine.Operation{ClientId: clients[o.client], Input: o, Output: o, Call: int64(o.call), Return: int64(o.ret)})
	}
	return out
}

var (
	errLost    = errors.New("an acknowledged batch is lost")
	errDirty   = errors.New("a read saw what is not in the stream")
	errTwice   = errors.New("a record is stored twice")
	errForeign = errors.New("a record is stored that nobody sent")
)

// checkContents compares what was acknowledged and read with the final stream.
func checkContents(ops []*op, final []byte) error {
	for _, o := range ops {
		switch {
		case o.outcome != done:
		case o.kind == opAppend && !inStream(o, final):
			return fmt.Errorf("%w: %s", errLost, o)
		case o.kind == opScan && !contains(final, o.first, o.content):
			return fmt.Errorf("%w: %s", errDirty, o)
		case o.kind == opOpen && o.gotLast > 0 && !contains(final, o.gotLast, o.content):
			return fmt.Errorf("%w: last record of %s", errDirty, o)
		}
	}
	return nil
}

// contains reports whether final has content from seq first on.
func contains(final []byte, first uint64, content []byte) bool {
	from := (max(first, 1) - 1) * record.Size
	to := from + uint64(len(content))
	return len(content) == 0 || to <= uint64(len(final)) && bytes.Equal(final[from:to], content)
}

// checkOnce checks that each record of the final stream was sent by somebody, is
// there once, and that batches are there as a whole or not at all.
func checkOnce(ops []*op, final []byte) error {
	batches := map[uint64]*op{}
	for _, o := range ops {
		if o.kind == opAppend {
			batches[o.nonce] = o
		}
	}
	seen := map[uint64]bool{}
	for at := 0; at < len(final); {
		rs, err := record.View(final[at:])
		if err != nil {
			return err
		}
		o := batches[nonceOf(&rs[0])]
		switch {
		case rs[0].Seq != uint64(at/record.Size)+1:
			return fmt.Errorf("record %d has seq %d", at/record.Size+1, rs[0].Seq)
		case o == nil || !inStream(o, final) || o.first != rs[0].Seq:
			return fmt.Errorf("%w: seq %d", errForeign, rs[0].Seq)
		case seen[o.nonce]:
			return fmt.Errorf("%w: %s", errTwice, o)
		}
		seen[o.nonce] = true
		at += len(o.records)
	}
	return nil
}

// nonceOf returns the nonce of the batch that a record belongs to.
func nonceOf(r *record.Record) uint64 { return r.OrderInsert().ClientOrderID }

// makeRecords returns n records from seq first on, which no other call returns as
// long as the nonce differs.
func makeRecords(instrument string, first uint64, n int, nonce uint64) []record.Record {
	rs := make([]record.Record, n)
	for i := range rs {
		r := &rs[i]
		r.Version, r.Type, r.Seq, r.Global = record.Version, record.TypeOrderInsert, first+uint64(i), first+uint64(i)
		r.Time = int64(r.Seq) * 1000
		r.Instrument = record.MustSymbol(instrument)
		o := r.OrderInsert()
		o.OrderID, o.ClientOrderID, o.Account = nonce<<16|uint64(i), nonce, nonce%7+1
		o.Price, o.Volume = int64(binary.LittleEndian.Uint16(r.Bytes()[8:])), 1
	}
	return rs
}
