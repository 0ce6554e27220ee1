package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
)

// readerVariable makes this program the reader in another process.
const readerVariable = "COUNTINGHOUSE_BENCH_READER"

// ready is the reader's first line.
const ready = "ready\n"

// kind is a way to another process.
type kind string

const (
	outboxPolled kind = "outbox polled"
	outboxWaited kind = "outbox waited for"
	socket       kind = "socket"
	pipe         kind = "pipe"
)

// job is what the reader's process is asked to do.
type job struct {
	Kind      kind
	Dir       string // of the outbox
	Records   int
	Polled    bool // of a socket: reads without blocking
	Sustained bool // tell only when the last record was seen
	Resting   bool // of a polled outbox: look once a microsecond until a batch is there
}

// seen is what the reader's process answers.
type seen struct {
	Nanos []int64 // from the time in the record until it was seen
	Last  int64   // CLOCK_MONOTONIC when the last one was seen
}

// ReadElsewhere does the reader's work if this process was started for it, and
// reports whether it was. A main that runs the suite calls it first.
func ReadElsewhere() (was bool, err error) {
	task := os.Getenv(readerVariable)
	if task == "" {
		return false, nil
	}
	var j job
	if err := json.Unmarshal([]byte(task), &j); err != nil {
		return true, err
	}
	s, err := j.read()
	if err != nil {
		return true, fmt.Errorf("reader: %w", err)
	}
	return true, json.NewEncoder(os.Stdout).Encode(s)
}

// watcher notes when records are seen.
type watcher struct {
	job
	clock clock
	seen  seen
	left  int
}

func (j job) read() (seen, error) {
	c, err := newClock()
	if err != nil {
		return seen{}, err
	}
	w := &watcher{job: j, clock: c, left: j.Records}
	if !j.Sustained {
		w.seen.Nanos = make([]int64, 0, j.Records)
	}
	if j.Kind == socket || j.Kind == pipe {
		err = w.readFile(3) // the first of exec.Cmd.ExtraFiles
	} else {
		err = w.readOutbox()
	}
	w.seen.Last = w.clock.now()
	return w.seen, err
}

func (w *watcher) saw(rs []record.Record) {
	w.left -= len(rs)
	if w.Sustained {
		return
	}
	now := w.clock.now()
	for i := range rs {
		w.seen.Nanos = append(w.seen.Nanos, now-rs[i].Time)
	}
}

func (w *watcher) readOutbox() error {
	r, err := outbox.OpenReader(w.Dir, cursorName)
	if err != nil {
		return err
	}
	defer r.Close()
	fmt.Print(ready)
	var sink record.Record
	for w.left > 0 {
		if err := w.await(r); err != nil {
			return err
		}
		rs := r.Peek()
		w.saw(rs)
		for i := range rs {
			sink = rs[i]
		}
		r.Advance(len(rs))
		if r.Position()-r.Cursor() >= cursorEvery {
			r.SetCursor(r.Position())
		}
	}
	_ = sink
	return r.Err()
}

func (w *watcher) await(r *outbox.Reader) error {
	if w.Kind == outboxWaited {
		return r.Wait(context.Background())
	}
	if w.Resting {
		w.rest(r)
		return nil
	}
	for r.Published() == r.Position() {
	}
	return nil
}

// rest returns when a batch is there, or what is left. A look takes the counter's
// cache line away from the writer, so it looks no more than once a microsecond.
func (w *watcher) rest(r *outbox.Reader) {
	want := uint64(min(w.left, batch))
	for r.Published()-r.Position() < want {
		for until := w.clock.now() + 1000; w.clock.now() < until; {
		}
	}
}

func (w *watcher) readFile(fd int) error {
	if err := unix.SetNonblock(fd, w.Polled); err != nil {
		return err
	}
	fmt.Print(ready)
	buf := make([]record.Record, 10*batch)
	b := record.SliceBytes(buf)
	for held := 0; w.left > 0; {
		n, err := unix.Read(fd, b[held:])
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		held += n
		whole := held / record.Size
		w.saw(buf[:whole])
		held = copy(b, b[whole*record.Size:held])
	}
	return nil
}
