package fire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func withIdentity(ctx context.Context) context.Context {
	return replica.WithIdentity(ctx, clusterName, shardName)
}

// readStates asks for the state of all instruments, at whoever may lead, until
// the run is over.
func (k *client) readStates() {
	defer k.close()
	for k.pause(20 * time.Millisecond) {
		m := k.pick()
		k.readState(k.c.ctx, m)
	}
}

// readState reads the state of all instruments at m, as the leader.
func (k *client) readState(ctx context.Context, m *member) bool {
	ctx, cancel := call(ctx)
	defer cancel()
	asked := k.c.history.begin(op{client: k.name, kind: opState})
	answer, err := k.query(m).Instruments(ctx, &storagepb.InstrumentsRequest{})
	if err != nil {
		k.follow(m, refusal.FromError(err))
		return false
	}
	k.hint = m.id
	for _, st := range answer.Instruments {
		o := *asked
		o.instrument, o.outcome = st.Instrument, done
		o.gotEpoch, o.gotLast, o.gotChain = st.Epoch, st.LastSeq, st.Chain
		k.c.history.end(&o)
	}
	return true
}

const scanBack = 40 // records

// readRecords scans the end of the instruments' streams at whoever may lead.
func (k *client) readRecords() {
	defer k.close()
	known := map[string]uint64{}
	for k.pause(20 * time.Millisecond) {
		name := instruments[k.rng.IntN(len(instruments))]
		from := uint64(1)
		if known[name] > scanBack {
			from = known[name] - uint64(k.rng.IntN(scanBack))
		}
		m := k.pick()
		o := k.c.history.begin(op{client: k.name, kind: opScan, instrument: name, first: from})
		content, err := k.scan(m, &storagepb.ScanRequest{Instrument: name, FromSeq: from})
		if err != nil {
			k.follow(m, refusal.FromError(err))
			continue
		}
		k.hint = m.id
		o.outcome, o.content, o.gotLast = done, content, from-1+uint64(len(content)/record.Size)
		k.c.history.end(o)
		known[name] = max(known[name], o.gotLast)
	}
}

func (k *client) scan(m *member, req *storagepb.ScanRequest) ([]byte, error) {
	ctx, cancel := context.WithTimeout(withIdentity(context.Background()), 4*callTimeout)
	defer cancel()
	stream, err := k.query(m).Scan(ctx, req)
	if err != nil {
		return nil, err
	}
	return collect(stream)
}

func collect(stream grpc.ServerStreamingClient[storagepb.Records]) ([]byte, error) {
	var out []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r.Data...)
	}
}

// stale is what a replica showed that need not have been the leader.
type stale struct {
	member, instrument string
	at                 time.Duration
	first              uint64 // of content; 0: of state only
	content            []byte
	last               uint64
	chain              uint32
}

func (s *stale) String() string {
	return fmt.Sprintf("stale read at %s of %s from %s: last %d", s.at, s.instrument, s.member, s.last)
}

// readStale reads states and records at any replica. What it returns is compared
// with the final streams: whatever a replica shows must be there.
func (k *client) readStale() (out []*stale) {
	defer k.close()
	for k.pause(30 * time.Millisecond) {
		present := k.c.present()
		m := present[k.rng.IntN(len(present))]
		if k.rng.IntN(2) == 0 {
			out = append(out, k.staleStates(m)...)
			continue
		}
		name := instruments[k.rng.IntN(len(instruments))]
		s := &stale{member: m.id, instrument: name, at: k.c.history.now(), first: 1}
		content, err := k.scan(m, &storagepb.ScanRequest{Instrument: name, FromSeq: 1, Stale: true})
		if err != nil {
			k.follow(m, nil)
			continue
		}
		s.content, s.last = content, uint64(len(content)/record.Size)
		out = append(out, s)
	}
	return out
}

func (k *client) staleStates(m *member) (out []*stale) {
	ctx, cancel := call(k.c.ctx)
	defer cancel()
	answer, err := k.query(m).Instruments(ctx, &storagepb.InstrumentsRequest{Stale: true})
	if err != nil {
		k.follow(m, nil)
		return nil
	}
	for _, st := range answer.Instruments {
		out = append(out, &stale{
			member: m.id, instrument: st.Instrument, at: k.c.history.now(), last: st.LastSeq, chain: st.Chain,
		})
	}
	return out
}

// follower is what a tail has brought.
type follower struct {
	instrument string
	content    []byte // from the first record on
}

// tail follows an instrument at one replica after the other, each time from the
// record after the last one that came.
func (k *client) tail(instrument string) *follower {
	defer k.close()
	f := &follower{instrument: instrument}
	for k.pause(50 * time.Millisecond) {
		present := k.c.present()
		m := present[k.rng.IntN(len(present))]
		ctx, cancel := context.WithTimeout(withIdentity(k.c.ctx), time.Duration(200+k.rng.IntN(1500))*time.Millisecond)
		stream, err := k.query(m).Tail(ctx, &storagepb.TailRequest{
			Instrument: instrument, FromSeq: uint64(len(f.content)/record.Size) + 1, Stale: k.rng.IntN(2) == 0,
		})
		for err == nil {
			var r *storagepb.Records
			if r, err = stream.Recv(); err == nil {
				f.content = append(f.content, r.Data...)
			}
		}
		cancel()
		k.follow(m, nil)
	}
	return f
}
