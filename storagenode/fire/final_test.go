package fire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/replica"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

func refusalOf(err error) *refusal.Error {
	if err == nil {
		return nil
	}
	return refusal.FromError(err)
}

// settleTimeout is how long the shard may take, without any fault, to elect a
// leader and bring all members to the same state.
const settleTimeout = 30 * time.Second

// settle starts who is down and waits until all members hold the same. It
// returns the state by instrument.
func (c *cluster) settle() (map[string]state, error) {
	rng := c.random()
	k := c.client("settle")
	defer k.close()
	var why string
	for deadline := time.Now().Add(settleTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, m := range c.present() {
			c.restart(m, rng) // a crash that had begun may end its life only now
		}
		if err := c.found(); err != nil {
			return nil, err
		}
		var states map[string]state
		if states, why = k.agreed(); why == "" {
			return states, nil
		}
	}
	return nil, fmt.Errorf("without any fault the members do not agree within %s: %s%s", settleTimeout, why, k.statuses())
}

// retire takes members off the network that are not of the shard, by the word of
// its leader at rest: one whose learner was never added, and one whose removal
// took effect although the answer was lost.
func (k *client) retire(leader *member) error {
	ctx, cancel := call(context.Background())
	defer cancel()
	st, err := k.admin(leader).Status(ctx, &storagepb.StatusRequest{})
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, m := range st.Members {
		listed[m.Id] = true
	}
	if st.State != "leader" || !listed[leader.id] {
		return fmt.Errorf("%s does not lead", leader.id)
	}
	for _, m := range k.c.present() {
		if !listed[m.id] {
			if err := m.leave(); err != nil {
				return err
			}
		}
	}
	return nil
}

// agreed returns the leader's state of each instrument, or why it is not that of
// all members yet.
func (k *client) agreed() (map[string]state, string) {
	var leader map[string]state
	for _, m := range k.c.present() {
		if states, err := k.states(m, false); err == nil && k.retire(m) == nil {
			leader = states
			break
		}
	}
	if len(leader) != len(instruments) {
		return nil, "no leader answers"
	}
	for _, m := range k.c.present() {
		states, err := k.states(m, true)
		if err != nil {
			k.drop(m)
			return nil, fmt.Sprintf("%s: %v", m.id, err)
		}
		for name, want := range leader {
			if states[name] != want {
				return nil, fmt.Sprintf("%s holds %+v of %s, the leader %+v", m.id, states[name], name, want)
			}
		}
	}
	return leader, ""
}

func (k *client) states(m *member, stale bool) (map[string]state, error) {
	ctx, cancel := call(context.Background())
	defer cancel()
	answer, err := k.query(m).Instruments(ctx, &storagepb.InstrumentsRequest{Stale: stale})
	if err != nil {
		return nil, err
	}
	out := map[string]state{}
	for _, st := range answer.Instruments {
		if held := st.MemtableRecords + st.TableRecords; held != st.LastSeq {
			k.c.find(fmt.Errorf("%s holds %d records of %s, its last seq is %d", m.id, held, st.Instrument, st.LastSeq))
		}
		out[st.Instrument] = state{epoch: st.Epoch, last: st.LastSeq, chain: st.Chain}
	}
	return out, nil
}

func (k *client) statuses() string {
	var b strings.Builder
	for _, m := range k.c.present() {
		ctx, cancel := call(context.Background())
		st, err := k.admin(m).Status(ctx, &storagepb.StatusRequest{})
		cancel()
		fmt.Fprintf(&b, "\n\t%s: %v %v", m.id, st, err)
	}
	return b.String()
}

// streams returns each instrument's records, after having read them from every
// member and compared.
func (c *cluster) streams(states map[string]state) (map[string][]byte, error) {
	k := c.client("streams")
	defer k.close()
	out := map[string][]byte{}
	for _, name := range instruments {
		for _, m := range c.present() {
			content, err := k.scan(m, &storagepb.ScanRequest{Instrument: name, Stale: true})
			if err != nil {
				return nil, fmt.Errorf("scan of %s at %s: %w", name, m.id, err)
			}
			if err := states[name].describes(content); err != nil {
				return nil, fmt.Errorf("%s at %s: %w", name, m.id, err)
			}
			if first, ok := out[name]; ok && !bytes.Equal(first, content) {
				return nil, fmt.Errorf("%s at %s: other records than at the members before", name, m.id)
			}
			out[name] = content
		}
	}
	return out, nil
}

// describes reports whether content is a whole stream that ends in state s.
func (s state) describes(content []byte) error {
	if n := uint64(len(content) / record.Size); n != s.last {
		return fmt.Errorf("%d records, last seq is %d", n, s.last)
	}
	if chain := crc32.Checksum(content, record.Castagnoli); chain != s.chain {
		return fmt.Errorf("chain is %08x, that of the records %08x", s.chain, chain)
	}
	rs, err := record.View(content)
	if err != nil {
		return err
	}
	for i := range rs {
		if err := rs[i].Check(); err != nil {
			return err
		}
		if rs[i].Seq != uint64(i)+1 {
			return fmt.Errorf("record %d has seq %d", i+1, rs[i].Seq)
		}
	}
	return nil
}

// checkStale compares what replicas showed during the run with the final streams.
func checkStale(reads []*stale, finals map[string][]byte) error {
	for _, s := range reads {
		final := finals[s.instrument]
		end := s.last * record.Size
		switch {
		case end > uint64(len(final)):
			return fmt.Errorf("%w: %s, the stream ends at %d", errDirty, s, len(final)/record.Size)
		case s.first == 0 && s.chain != crc32.Checksum(final[:end], record.Castagnoli):
			return fmt.Errorf("%w: %s: another chain", errDirty, s)
		case s.first != 0 && !bytes.Equal(s.content, final[:end]):
			return fmt.Errorf("%w: %s: other records", errDirty, s)
		}
	}
	return nil
}

// checkTail compares what a tail brought with the final stream.
func (f *follower) check(finals map[string][]byte) error {
	if !bytes.HasPrefix(finals[f.instrument], f.content) {
		return fmt.Errorf("%w: tail of %s, %d records", errDirty, f.instrument, len(f.content)/record.Size)
	}
	return nil
}

// powerOff takes the power from all members at once, keeping nothing that was
// not synced, and starts them again.
func (c *cluster) powerOff() {
	rng := c.random()
	for _, m := range c.present() {
		m.crash(m.running(), 0, true, rng)
	}
}

// checkDisks stops all members and checks everything on their disks.
func (c *cluster) checkDisks() error {
	var errs []error
	for _, m := range c.present() {
		if err := m.stop(); err != nil {
			errs = append(errs, fmt.Errorf("stop of %s: %w", m.id, err))
		}
		_, err := replica.VerifyDataDir(m.present(), dataDir, func(f replica.Finding) {
			if !f.Harmless {
				errs = append(errs, fmt.Errorf("disk of %s: %s at %d: %s", m.id, f.File, f.Offset, f.What))
			}
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
