package child

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// Writer appends to the streams of a node in turns. It is for one goroutine.
type Writer struct {
	node  *Node
	epoch uint64
	next  []uint64 // seq, by stream
	turn  int
}

// Load says what a Writer sends.
type Load struct {
	Batch    int // records
	Batches  int
	Endless  bool          // instead of Batches: until the context ends
	Interval time.Duration // between two batches; 0: as fast as they are taken
	// Acked, if set, is called after each answer with the stream, the batch's last seq
	// and how long it took since the batch was due.
	Acked func(stream int, lastSeq uint64, took time.Duration)
	// Sending, if set, is called before each batch is sent.
	Sending func(stream int, lastSeq uint64)
}

// Open opens all streams with an epoch above every earlier one's.
func (n *Node) Open(ctx context.Context, epoch uint64) (*Writer, error) {
	w := &Writer{node: n, epoch: epoch, next: make([]uint64, len(n.Streams))}
	for i := range n.Streams {
		r, err := n.Client.OpenStream(ctx, n.Streams[i].Symbol, epoch)
		if err != nil {
			return nil, err
		}
		w.next[i] = r.LastSeq + 1
	}
	return w, nil
}

// Last returns the last seq that was sent, by stream.
func (w *Writer) Last() []uint64 {
	out := make([]uint64, len(w.next))
	for i, next := range w.next {
		out[i] = next - 1
	}
	return out
}

// sent is a batch that is not answered yet.
type sent struct {
	stream int
	last   uint64
	due    time.Time
}

// sentMax bounds the batches on their way, so that a client that is ahead of its node
// does not fill the memory.
const sentMax = 256

// Write sends a load and returns when all of it is acknowledged.
func (w *Writer) Write(ctx context.Context, l Load) error {
	// The stream outlives the load's context: what was sent is waited for.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	appender, err := w.node.Client.Append(streamCtx, shard)
	if err != nil {
		return err
	}
	defer appender.Close()
	way := make(chan sent, sentMax)
	failed := make(chan error, 1)
	go func() {
		defer close(way)
		if err := w.send(ctx, appender, l, way); err != nil {
			failed <- err
			cancel()
		}
	}()
	err = receive(appender, l, way)
	cancel()
	for range way { // the sender ends
	}
	select {
	case sendErr := <-failed:
		return errors.Join(sendErr, err)
	default:
		return err
	}
}

func (w *Writer) send(ctx context.Context, appender *client.Appender, l Load, way chan<- sent) error {
	due := time.Now()
	for i := 0; (l.Endless || i < l.Batches) && ctx.Err() == nil; i++ {
		if l.Interval > 0 {
			due = due.Add(l.Interval)
			time.Sleep(time.Until(due))
		} else {
			due = time.Now()
		}
		b, s, err := w.batch(l.Batch)
		if err != nil {
			return err
		}
		s.due = due
		if l.Sending != nil {
			l.Sending(s.stream, s.last)
		}
		way <- s
		if err := appender.Send(b); err != nil {
			return err
		}
	}
	return nil
}

func (w *Writer) batch(n int) ([]byte, sent, error) {
	i := w.turn
	w.turn = (w.turn + 1) % len(w.next)
	b, err := w.node.Streams[i].Batch(w.epoch, w.next[i], n)
	w.next[i] += uint64(n)
	return b, sent{stream: i, last: w.next[i] - 1}, err
}

func receive(appender *client.Appender, l Load, way <-chan sent) error {
	for s := range way {
		ack, err := appender.Recv()
		if err != nil {
			return err
		}
		if ack.Refusal != nil {
			return fmt.Errorf("append: %w", ack.Refusal)
		}
		if ack.LastSeq != s.last {
			return fmt.Errorf("append: acknowledged up to %d, sent up to %d", ack.LastSeq, s.last)
		}
		if l.Acked != nil {
			l.Acked(s.stream, s.last, time.Since(s.due))
		}
	}
	return nil
}

// BatchesFor returns how many batches of so many records hold so many bytes of records.
func BatchesFor(bytes int64, batch int) int {
	return int((bytes + int64(batch)*record.Size - 1) / (int64(batch) * record.Size))
}
