package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const (
	readTimeout   = 3 * time.Second
	readPauseMax  = 60 * time.Millisecond
	scanBackMax   = 3000 // records before the end at which a scan begins
	scanMiddleMax = 500
	tailTime      = 10 * time.Second
)

// reader reads one shard in all ways and checks what it gets.
type reader struct {
	t      *torture
	shard  *shard
	conn   connection
	random *rand.Rand
}

// startReaders starts one reader and one follower of a shard.
func (t *torture) startReaders(ctx context.Context, wg *sync.WaitGroup, s *shard, number int) {
	start := func(what string, i int, run func(*reader, context.Context)) {
		r := &reader{t: t, shard: s, random: t.random(streamReader + uint64(2*number+i))}
		r.conn = connection{t: t, host: fmt.Sprintf("%s-%d", what, number)}
		t.hosts = append(t.hosts, r.conn.host)
		wg.Go(func() {
			defer r.conn.close()
			run(r, ctx)
		})
	}
	start("reader", 0, (*reader).run)
	start("follower", 1, (*reader).follow)
}

func (r *reader) run(ctx context.Context) {
	for pause(ctx, time.Duration(r.random.Int64N(int64(readPauseMax)))) {
		c, err := r.conn.client()
		if err != nil {
			r.t.found.add(broken, 1, "reader of %s: %v", r.shard.name, err)
			return
		}
		l := r.shard.ledgers[r.random.IntN(len(r.shard.ledgers))]
		r.judge(ctx, l, r.once(ctx, c, l))
	}
}

// judge counts a read that faults explain, and reports another that failed.
func (r *reader) judge(ctx context.Context, l *ledger, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	r.t.counts.readsFailed.Add(1)
	if !canHappen(err) {
		r.t.found.add(broken, 1, "read of %s: %v", l.sym, err)
	}
}

// once makes one read.
func (r *reader) once(ctx context.Context, c *client.Client, l *ledger) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	switch k := r.random.IntN(20); {
	case k < 8:
		return r.scanEnd(ctx, c, l)
	case k < 10:
		return r.scanMiddle(ctx, c, l)
	case k < 15:
		return r.get(ctx, c, l)
	case k < 16:
		return r.lengths(ctx, c)
	}
	return r.scanStale(ctx, c, l)
}

// scanEnd reads from somewhere near the end to the end, from the leader: it must
// show everything that was acknowledged, or read by anybody, before it began.
func (r *reader) scanEnd(ctx context.Context, c *client.Client, l *ledger) error {
	must := l.durable()
	from := must + 1 - min(must, r.random.Uint64N(scanBackMax))
	last, err := r.scan(ctx, c, l, client.Range{FromSeq: from}, client.Replica{})
	if err != nil {
		return err
	}
	if last = max(last, from-1); last < must {
		l.report(lost, must-last, "a read from the leader showed up to seq %d; up to seq %d were durable before it began", last, must)
	}
	r.t.counts.scans.Add(1)
	return nil
}

// scanMiddle reads a range that must be whole, from the leader.
func (r *reader) scanMiddle(ctx context.Context, c *client.Client, l *ledger) error {
	must := l.durable()
	if must == 0 {
		return nil
	}
	from := 1 + r.random.Uint64N(must)
	to := min(from+r.random.Uint64N(scanMiddleMax), must)
	last, err := r.scan(ctx, c, l, client.Range{FromSeq: from, ToSeq: to}, client.Replica{})
	if err != nil {
		return err
	}
	if last != to {
		l.report(lost, to-min(last, to), "a read of seq %d to %d from the leader showed up to seq %d", from, to, last)
	}
	r.t.counts.scans.Add(1)
	return nil
}

// scanStale reads from any replica: what it shows must be right, however little.
func (r *reader) scanStale(ctx context.Context, c *client.Client, l *ledger) error {
	members := c.Map().Shard(r.shard.name).Members
	from := client.Replica{Member: members[r.random.IntN(len(members))].ID}
	must := l.durable()
	first := must + 1 - min(must, r.random.Uint64N(scanBackMax))
	_, err := r.scan(ctx, c, l, client.Range{FromSeq: first}, from)
	if errors.Is(err, refusal.ErrNotOwner) { // a learner that knows nothing yet
		return nil
	}
	if err == nil {
		r.t.counts.stale.Add(1)
	}
	return err
}

// scan reads a range and checks the records. It returns the last seq, 0 for none.
func (r *reader) scan(ctx context.Context, c *client.Client, l *ledger, what client.Range, from client.Replica) (last uint64, err error) {
	where := "a scan by the leader"
	if from.Member != "" {
		where = "a scan by " + from.Member
	}
	err = c.Scan(ctx, l.sym, what, from, func(rs []record.Record) error {
		l.read(rs, where)
		last = rs[len(rs)-1].Seq
		r.t.counts.readRecords.Add(uint64(len(rs)))
		return nil
	})
	return last, err
}

// get looks one durable record up by its id: there must be exactly one.
func (r *reader) get(ctx context.Context, c *client.Client, l *ledger) error {
	must := l.durable()
	if must == 0 {
		return nil
	}
	seq := 1 + r.random.Uint64N(must)
	id := client.ByID{Order: seq}
	if isTrade(seq) {
		id = client.ByID{Trade: seq}
	}
	var got []record.Record
	err := c.Get(ctx, l.sym, id, client.Replica{}, func(rs []record.Record) error {
		l.read(rs, "a lookup at the leader")
		got = append(got, rs...)
		return nil
	})
	switch {
	case err != nil:
		return err
	case len(got) == 0:
		l.report(lost, 1, "a lookup of the id of seq %d, which was durable before it began, found nothing", seq)
	case len(got) > 1:
		l.report(duplicated, uint64(len(got)-1), "a lookup of the id of seq %d found %d records", seq, len(got))
	case got[0].Seq != seq:
		l.report(reordered, 1, "a lookup of the id of seq %d found seq %d", seq, got[0].Seq)
	}
	r.t.counts.gets.Add(1)
	r.t.counts.readRecords.Add(uint64(len(got)))
	return nil
}

// lengths asks the leader how long the streams are.
func (r *reader) lengths(ctx context.Context, c *client.Client) error {
	must := make(map[string]uint64, len(r.shard.ledgers))
	for _, l := range r.shard.ledgers {
		must[l.sym.String()] = l.durable()
	}
	held, err := c.Instruments(ctx, r.shard.name, client.Replica{})
	if err != nil {
		return err
	}
	got := make(map[string]uint64, len(held.Instruments))
	for _, st := range held.Instruments {
		got[st.Instrument] = st.LastSeq
		if st.MemtableRecords+st.TableRecords != st.LastSeq {
			r.t.found.add(broken, 1, "%s: the leader holds %d records in memory and %d in tables; its stream ends at seq %d",
				st.Instrument, st.MemtableRecords, st.TableRecords, st.LastSeq)
		}
	}
	for _, l := range r.shard.ledgers {
		if n := l.sym.String(); got[n] < must[n] {
			l.report(lost, must[n]-got[n], "the leader states a length of %d; %d records were durable before it was asked", got[n], must[n])
		}
	}
	r.t.counts.scans.Add(1)
	return nil
}

// follow follows one stream from its first record on, across all changes of the
// leader: every record comes once, in order.
func (r *reader) follow(ctx context.Context) {
	l := r.shard.ledgers[r.random.IntN(len(r.shard.ledgers))]
	for next := uint64(1); pause(ctx, readPauseMax); {
		c, err := r.conn.client()
		if err != nil {
			r.t.found.add(broken, 1, "follower of %s: %v", l.sym, err)
			return
		}
		// Ended now and then, to look for changed members.
		tailing, cancel := context.WithTimeout(ctx, tailTime)
		err = c.Tail(tailing, l.sym, next, client.Replica{}, func(rs []record.Record) error {
			l.read(rs, "a follower of the leader")
			for i := range rs {
				if rs[i].Seq != next {
					l.report(reordered, 1, "a follower got seq %d after seq %d", rs[i].Seq, next-1)
				}
				next = rs[i].Seq + 1
			}
			r.t.counts.tails.Add(uint64(len(rs)))
			return nil
		})
		if tailing.Err() == nil {
			r.judge(ctx, l, err)
		}
		cancel()
	}
}
