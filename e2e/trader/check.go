package main

import (
	"context"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// Verdict says whether the shards hold what the exchange has answered, once.
type Verdict struct {
	OK       bool     `json:"ok"`
	Records  uint64   `json:"records"`
	Orders   int      `json:"orders"`   // accepted, and looked for
	Unknown  int      `json:"unknown"`  // without an answer, and found
	Members  int      `json:"members"`  // read
	Problems []string `json:"problems"` // empty if OK
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkWait bounds the wait for members to have what the trader was told.
const (
	checkWait  = 60 * time.Second
	checkPause = 50 * time.Millisecond
)

// check reads every stream from every member. Trading must be paused.
func (t *trader) check(ctx context.Context, m *client.Map) (*Verdict, error) {
	if !t.paused.Load() {
		return nil, fmt.Errorf("trading goes on: POST /pause first")
	}
	c, err := client.New(m, client.Options{TLS: t.reader})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	k := &checker{c: c, told: t.told(), globals: map[uint64]string{}, found: map[uint64]int{}, orders: map[uint64]int{}, cancels: map[uint64]int{}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for _, shard := range m.Shards {
		for _, name := range shard.Instruments {
			if err := k.stream(ctx, shard, name); err != nil {
				return nil, err
			}
		}
	}
	k.compare()
	v := &Verdict{OK: len(k.problems) == 0, Records: uint64(len(k.globals)), Orders: len(k.told.placed), Unknown: k.unknown, Members: k.members, Problems: k.problems}
	if len(v.Problems) > 20 {
		v.Problems = append(v.Problems[:20:20], words(v.Problems[20:]))
	}
	return v, nil
}

// told is what the exchange has said, at one instant.
type told struct {
	first    uint64
	placed   map[uint64]placed
	unknown  map[uint64]bool
	rejected map[uint64]string
	last     map[string]uint64 // seq by instrument
}

func (t *trader) told() told {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := told{first: t.first, placed: map[uint64]placed{}, unknown: map[uint64]bool{}, rejected: map[uint64]string{}, last: map[string]uint64{}}
	for id, p := range t.placed {
		k.placed[id] = p
		k.last[p.instrument] = max(k.last[p.instrument], p.seq)
	}
	for id := range t.unknown {
		k.unknown[id] = true
	}
	for id, reason := range t.rejected {
		k.rejected[id] = reason
	}
	return k
}

type checker struct {
	c        *client.Client
	told     told
	globals  map[uint64]string // where a global number was found
	found    map[uint64]int    // inserts, by client order id
	orders   map[uint64]int    // inserts, by order id
	cancels  map[uint64]int    // by order id
	unknown  int
	members  int
	problems []string
}

func (k *checker) problem(format string, args ...any) {
	k.problems = append(k.problems, fmt.Sprintf(format, args...))
}

// stream reads one instrument from all members, which must hold the same bytes.
func (k *checker) stream(ctx context.Context, shard client.Shard, name string) error {
	sym, err := record.MakeSymbol(name)
	if err != nil {
		return err
	}
	var first uint32
	var length uint64
	for i, m := range shard.Members {
		if err := k.await(ctx, shard, m, name); err != nil {
			return err
		}
		sum, n, err := k.read(ctx, sym, shard, m, i == 0)
		if err != nil {
			return fmt.Errorf("read %s from %s: %w", name, memberOf(shard, m), err)
		}
		k.members++
		if i == 0 {
			first, length = sum, n
		} else if sum != first || n != length {
			k.problem("%s: %s holds %d records (%08x), %s holds %d (%08x)", name, shard.Members[0].ID, length, first, memberOf(shard, m), n, sum)
		}
	}
	return nil
}

// await waits until a member has applied what the leader has, and the leader what the
// trader was told.
func (k *checker) await(ctx context.Context, shard client.Shard, m client.Member, name string) error {
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	for {
		err := k.has(ctx, shard, m, name)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(checkPause):
		case <-ctx.Done():
			return err
		}
	}
}

// has says what a member lacks, nil for nothing.
func (k *checker) has(ctx context.Context, shard client.Shard, m client.Member, name string) error {
	leads, err := k.c.Instruments(ctx, shard.Name, client.Replica{})
	if err != nil {
		return err
	}
	own, err := k.c.Instruments(ctx, shard.Name, client.Replica{Member: m.ID})
	if err != nil {
		return fmt.Errorf("%s: %w", memberOf(shard, m), err)
	}
	var stored uint64
	if i := slices.IndexFunc(leads.Instruments, func(s *storagepb.InstrumentStats) bool { return s.Instrument == name }); i >= 0 {
		stored = leads.Instruments[i].LastSeq
	}
	if told := k.told.last[name]; stored < told {
		return fmt.Errorf("shard %s has %s up to %d, and %d was answered", shard.Name, name, stored, told)
	}
	if own.AppliedIndex < leads.AppliedIndex {
		return fmt.Errorf("%s has applied %d, the leader %d", memberOf(shard, m), own.AppliedIndex, leads.AppliedIndex)
	}
	return nil
}

// read reads a stream from a member: its records must be numbered without a gap.
func (k *checker) read(ctx context.Context, sym record.Symbol, shard client.Shard, m client.Member, count bool) (sum uint32, n uint64, err error) {
	err = k.c.Scan(ctx, sym, client.Range{}, client.Replica{Member: m.ID}, func(rs []record.Record) error {
		sum = crc32.Update(sum, castagnoli, record.SliceBytes(rs))
		for i := range rs {
			n++
			if rs[i].Seq != n {
				k.problem("%s on %s: seq %d where %d is due", sym, memberOf(shard, m), rs[i].Seq, n)
				n = rs[i].Seq
			}
			if count {
				k.count(&rs[i])
			}
		}
		return nil
	})
	return sum, n, err
}

func (k *checker) count(r *record.Record) {
	at := fmt.Sprintf("%s/%d", r.Instrument, r.Seq)
	if other, twice := k.globals[r.Global]; twice {
		k.problem("global number %d is on %s and on %s", r.Global, other, at)
	}
	k.globals[r.Global] = at
	switch r.Type {
	case record.TypeOrderCancel:
		k.cancels[r.OrderCancel().OrderID]++
		return
	case record.TypeOrderInsert:
	default:
		return
	}
	o := r.OrderInsert()
	k.found[o.ClientOrderID]++
	k.orders[o.OrderID]++
	if p, ok := k.told.placed[o.ClientOrderID]; ok && p.order != o.OrderID {
		k.problem("order %d is stored as %d at %s", p.order, o.OrderID, at)
	}
}

// compare holds what was stored against what was said.
func (k *checker) compare() {
	for n := uint64(1); n <= uint64(len(k.globals)); n++ {
		if _, ok := k.globals[n]; !ok {
			k.problem("global number %d is on no record, of %d", n, len(k.globals))
			break
		}
	}
	lost := 0
	for id, p := range k.told.placed {
		if n := k.cancels[p.order]; n > 1 || p.canceled && n == 0 {
			k.problem("order %d was cancelled %d times; the answer to its cancel says %t", p.order, n, p.canceled)
		}
		if k.found[id] == 0 {
			if lost++; lost <= 3 {
				k.problem("order %d (%s, seq %d, global %d) was accepted and is not stored", p.order, p.instrument, p.seq, p.global)
			}
		}
	}
	if lost > 0 {
		k.problem("%d accepted orders are not stored", lost)
	}
	for id, n := range k.found {
		_, accepted := k.told.placed[id]
		switch {
		case n > 1:
			k.problem("client order %d is stored %d times", id, n)
		case k.told.unknown[id]:
			k.unknown++
		case k.told.rejected[id] != "":
			k.problem("client order %d was refused (%s) and is stored", id, k.told.rejected[id])
		case !accepted && id > k.told.first:
			k.problem("client order %d is stored and was never sent", id)
		}
	}
	for id, n := range k.orders {
		if n > 1 {
			k.problem("order id %d is stored %d times", id, n)
		}
	}
}
