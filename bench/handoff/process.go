package handoff

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/exchange/outbox"
	"github.com/countinghouse/countinghouse/record"
)

// pace is the time between two records where single ones are timed.
const pace = 20 * time.Microsecond

// batch is how many records sockets and pipes are given at once where it counts
// how many go through.
const batch = 100

// sender hands records to another process.
type sender interface {
	// send hands over a record that is stamped with the time, and may hold it back
	// until flush.
	send(now int64) error
	flush() error
}

func compareProcesses(ctx context.Context, b *measure.Bench, s sizes) error {
	c := measure.Case{Name: fmt.Sprintf("to another process, one each %v: time until seen, p50", pace), Unit: "ns", LowerIsBetter: true}
	err := b.Compare(ctx, c,
		measure.Contestant{System: "outbox, polled", Ours: true, Run: exchangeWith(b, job{Kind: outboxPolled, Records: s.latency})},
		measure.Contestant{System: "outbox, waited for", Note: "as the subscriber does: it polls a microsecond, then sleeps", Run: exchangeWith(b, job{Kind: outboxWaited, Records: s.latency})},
		measure.Contestant{System: "Unix socket, polled", Note: "one write a record", Run: exchangeWith(b, job{Kind: socket, Polled: true, Records: s.latency})},
		measure.Contestant{System: "Unix socket", Note: "one write a record, blocking read", Run: exchangeWith(b, job{Kind: socket, Records: s.latency})},
		measure.Contestant{System: "pipe", Note: "one write a record, blocking read", Run: exchangeWith(b, job{Kind: pipe, Records: s.latency})},
	)
	if err != nil {
		return err
	}
	c = measure.Case{Name: "to another process, as fast as it goes", Unit: "records/s"}
	note := fmt.Sprintf("%d records a write", batch)
	return b.Compare(ctx, c,
		measure.Contestant{System: "outbox, polled each µs", Ours: true, Note: "the reader waits for a batch of as many as the peers write", Run: exchangeWith(b, job{Kind: outboxPolled, Records: s.sustained, Sustained: true, Resting: true})},
		measure.Contestant{System: "outbox, polled", Ours: true, Note: "the reader takes each record at once", Run: exchangeWith(b, job{Kind: outboxPolled, Records: s.sustained, Sustained: true})},
		measure.Contestant{System: "Unix socket", Note: note, Run: exchangeWith(b, job{Kind: socket, Records: s.sustained, Sustained: true})},
		measure.Contestant{System: "pipe", Note: note, Run: exchangeWith(b, job{Kind: pipe, Records: s.sustained, Sustained: true})},
	)
}

// exchangeWith returns what starts a reader in another process, sends it records,
// and asks it when it saw them.
func exchangeWith(b *measure.Bench, j job) func(context.Context) (measure.Sample, error) {
	return func(ctx context.Context) (measure.Sample, error) {
		dir, remove, err := b.Dir()
		if err != nil {
			return measure.Sample{}, err
		}
		defer remove()
		return j.run(ctx, dir)
	}
}

func (j job) run(ctx context.Context, dir string) (s measure.Sample, err error) {
	s0, theirs, err := j.open(dir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, s0.Close()) }()
	r, err := startReader(ctx, j, filepath.Join(dir, "outbox"), theirs)
	if err != nil {
		return s, err
	}
	defer r.end()
	c, err := newClock()
	if err != nil {
		return s, err
	}
	start := c.now()
	if err := j.sendAll(s0, c); err != nil {
		return s, err
	}
	seen, err := r.result()
	if err != nil {
		return s, err
	}
	return j.sample(seen, start), nil
}

func (j job) sample(seen seen, start int64) measure.Sample {
	if j.Sustained {
		return measure.Sample{Value: float64(j.Records) / (time.Duration(seen.Last - start).Seconds())}
	}
	h := measure.NewHistogram()
	for _, ns := range seen.Nanos {
		h.Record(time.Duration(ns))
	}
	return measure.Sample{Value: float64(h.Latency().P50), Latency: h}
}

func (j job) sendAll(s sender, c clock) error {
	if j.Sustained {
		for range j.Records {
			if err := s.send(0); err != nil {
				return err
			}
		}
		return s.flush()
	}
	due := c.now()
	for range j.Records {
		due += int64(pace)
		now := c.now()
		for now < due {
			now = c.now()
		}
		if err := s.send(now); err != nil {
			return err
		}
		if err := s.flush(); err != nil {
			return err
		}
	}
	return nil
}

type senderCloser interface {
	sender
	io.Closer
}

// open returns this process's end, and the file that is the other one's, nil for
// an outbox.
func (j job) open(dir string) (senderCloser, *os.File, error) {
	switch j.Kind {
	case socket:
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, nil, err
		}
		return &fileSender{fd: fds[0]}, os.NewFile(uintptr(fds[1]), "socket"), nil
	case pipe:
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, nil, err
		}
		return &fileSender{fd: fds[1]}, os.NewFile(uintptr(fds[0]), "pipe"), nil
	}
	w, err := createOutbox(dir)
	if err != nil {
		return nil, nil, err
	}
	return &outboxSender{w: w, record: sampleRecord}, nil, nil
}

type outboxSender struct {
	w      *outbox.Writer
	record record.Record
}

func (o *outboxSender) send(now int64) error {
	for !o.w.Reserve(1) {
		runtime.Gosched()
	}
	slot := o.w.Next()
	global := slot.Global
	*slot = o.record
	slot.Global, slot.Time = global, now
	o.w.Commit()
	return nil
}

func (o *outboxSender) flush() error { return nil }
func (o *outboxSender) Close() error { return o.w.Close() }

// fileSender collects records and writes them to a socket or a pipe at once.
type fileSender struct {
	fd      int
	pending [batch]record.Record
	n       int
}

func (f *fileSender) send(now int64) error {
	r := &f.pending[f.n]
	*r = sampleRecord
	r.Time = now
	if f.n++; f.n < batch {
		return nil
	}
	return f.flush()
}

func (f *fileSender) flush() error {
	b := record.SliceBytes(f.pending[:f.n])
	f.n = 0
	for len(b) > 0 {
		n, err := unix.Write(f.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (f *fileSender) Close() error { return unix.Close(f.fd) }

// remoteReader is the other process.
type remoteReader struct {
	cmd   *exec.Cmd
	out   *bufio.Reader
	ended bool
}

// startReader starts the other process and returns when it looks for records.
func startReader(ctx context.Context, j job, dir string, theirs *os.File) (*remoteReader, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	j.Dir = dir
	task, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), readerVariable+"="+string(task))
	cmd.Stderr = os.Stderr
	if theirs != nil {
		defer theirs.Close()
		cmd.ExtraFiles = []*os.File{theirs}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &remoteReader{cmd: cmd, out: bufio.NewReader(out)}
	if line, err := r.out.ReadString('\n'); err != nil || line != ready {
		r.end()
		return nil, fmt.Errorf("the reader's process says %q: %w", line, errors.Join(err, errReader))
	}
	return r, nil
}

var errReader = errors.New("it did not start")

func (r *remoteReader) result() (s seen, err error) {
	if err := json.NewDecoder(r.out).Decode(&s); err != nil {
		return s, fmt.Errorf("the reader's process: %w", err)
	}
	r.ended = true
	return s, r.cmd.Wait()
}

// end stops the process if it has not ended by itself.
func (r *remoteReader) end() {
	if !r.ended {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
}
