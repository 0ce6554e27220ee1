package handoff

import (
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/puzpuzpuz/xsync/v4"
	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
)

// outboxWay publishes to an outbox and reads it through a cursor.
type outboxWay struct {
	w    *outbox.Writer
	r    *outbox.Reader
	sink record.Record // where the reader copies records, as a channel's does
}

// cursorName is the cursor of the reader, here or in another process.
const cursorName = "reader"

// cursorEvery is how many records a reader takes between two moves of its cursor.
const cursorEvery = 4096

// quotaBytes is the room of an outbox: eight million records.
const quotaBytes = 9 << 27

func createOutbox(dir string) (*outbox.Writer, error) {
	// As the exchange opens it: the gateway keeps the headroom, if any.
	return outbox.Open(filepath.Join(dir, "outbox"), outbox.Options{
		Cluster: "bench", QuotaBytes: quotaBytes, SegmentRecords: window, HeadroomRecords: -1, Cursors: []string{cursorName},
	})
}

func openOutbox(dir string, producers int) (way, error) {
	w, err := createOutbox(dir)
	if err != nil {
		return nil, err
	}
	r, err := outbox.OpenReader(w.Dir(), cursorName)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	o := &outboxWay{w: w, r: r}
	if producers == 1 {
		return o, nil
	}
	return &lockedOutbox{outboxWay: o}, nil
}

func (o *outboxWay) publish(r *record.Record) bool {
	if !o.w.Reserve(1) {
		return false
	}
	slot := o.w.Next()
	global := slot.Global
	*slot = *r
	slot.Global = global
	o.w.Commit()
	return true
}

func (o *outboxWay) read(most int) int {
	rs := o.r.Peek()
	rs = rs[:min(most, len(rs))]
	for i := range rs {
		o.sink = rs[i]
	}
	o.r.Advance(len(rs))
	if o.r.Position()-o.r.Cursor() >= cursorEvery || len(rs) == 0 {
		o.r.SetCursor(o.r.Position())
	}
	return len(rs)
}

func (o *outboxWay) close() error { return errors.Join(o.r.Err(), o.r.Close(), o.w.Close()) }

// lockedOutbox lets several producers in one after the other.
type lockedOutbox struct {
	mu sync.Mutex
	*outboxWay
}

func (o *lockedOutbox) publish(r *record.Record) bool {
	o.mu.Lock()
	ok := o.outboxWay.publish(r)
	o.mu.Unlock()
	return ok
}

type channelWay struct {
	c    chan record.Record
	sink record.Record
}

func openChannel(string, int) (way, error) {
	return &channelWay{c: make(chan record.Record, window)}, nil
}

func (c *channelWay) publish(r *record.Record) bool {
	select {
	case c.c <- *r:
		return true
	default:
		return false
	}
}

func (c *channelWay) read(most int) int {
	for n := range most {
		select {
		case c.sink = <-c.c:
		default:
			return n
		}
	}
	return most
}

func (c *channelWay) close() error { return nil }

// queue is what the queues of xsync have in common.
type queue interface {
	TryEnqueue(item record.Record) bool
	TryDequeue() (record.Record, bool)
}

type queueWay[Q queue] struct {
	q    Q
	sink record.Record
}

func openSPSC(string, int) (way, error) {
	return &queueWay[*xsync.SPSCQueue[record.Record]]{q: xsync.NewSPSCQueue[record.Record](window)}, nil
}

func openMPMC(string, int) (way, error) {
	return &queueWay[*xsync.MPMCQueue[record.Record]]{q: xsync.NewMPMCQueue[record.Record](window)}, nil
}

func (q *queueWay[Q]) publish(r *record.Record) bool { return q.q.TryEnqueue(*r) }

func (q *queueWay[Q]) read(most int) int {
	for n := range most {
		r, ok := q.q.TryDequeue()
		if !ok {
			return n
		}
		q.sink = r
	}
	return most
}

func (q *queueWay[Q]) close() error { return nil }

// copyWay is the floor: it copies into as much mapped memory as the outbox turns
// over, and publishes nothing.
type copyWay struct {
	data  []byte
	slots []record.Record
	at    int
}

// copyRecords is a power of two.
const copyRecords = 4 * window

func openCopy(dir string, _ int) (way, error) {
	f, err := os.Create(filepath.Join(dir, "memory"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(copyRecords * record.Size); err != nil {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, copyRecords*record.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if err := unix.Madvise(data, unix.MADV_POPULATE_WRITE); err != nil {
		return nil, errors.Join(err, unix.Munmap(data))
	}
	slots, err := record.View(data)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(data))
	}
	return &copyWay{data: data, slots: slots}, nil
}

func (c *copyWay) publish(r *record.Record) bool {
	c.slots[c.at&(copyRecords-1)] = *r
	c.at++
	return true
}

func (c *copyWay) read(int) int { return 0 }

func (c *copyWay) close() error { return unix.Munmap(c.data) }
