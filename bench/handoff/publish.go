package handoff

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
	"github.com/countinghouse/countinghouse/record"
)

// readerMode is what the reader does while records are published.
type readerMode string

const (
	idle      readerMode = "idle"       // reads between bursts that fit in
	keepingUp readerMode = "keeping up" // reads all the time; what finds no place is offered again
	stopped   readerMode = "stopped"    // never reads; what finds no place is lost; two million records a second
)

// burst is the number of records published between two rests of an idle reader.
const burst = window / 2

// window is what channel and queues hold: as much as one file of the outbox.
const window = 1 << 16

// way is one way to hand records over.
type way interface {
	// publish hands the next record over, or returns false at once if there is no
	// room. One goroutine calls it, or several if the way was opened for them.
	publish(r *record.Record) bool
	// read takes up to most records out and returns how many there were. One
	// goroutine calls it.
	read(most int) int
	close() error
}

// opener opens a way for so many producers. dir is empty and on the disk that is
// measured.
type opener func(dir string, producers int) (way, error)

// publication is a number of records that producers publish together.
type publication struct {
	records   int
	producers int
	mode      readerMode
}

// outcome is what a publication came to.
type outcome struct {
	elapsed time.Duration
	lost    int64 // records that found no place
	waits   int64 // times that a record had to be offered again
	mallocs uint64
}

func (p publication) run(b *measure.Bench, open opener) func(context.Context) (measure.Sample, error) {
	return func(context.Context) (measure.Sample, error) {
		dir, remove, err := b.Dir()
		if err != nil {
			return measure.Sample{}, err
		}
		defer remove()
		w, err := open(dir, p.producers)
		if err != nil {
			return measure.Sample{}, err
		}
		o := p.measure(w)
		if err := w.close(); err != nil {
			return measure.Sample{}, err
		}
		return p.sample(o), nil
	}
}

func (p publication) sample(o outcome) measure.Sample {
	done := float64(p.records)
	s := measure.Sample{Value: float64(o.elapsed.Nanoseconds()) / done, More: map[string]float64{
		"records/s":           done / o.elapsed.Seconds(), // while they are published
		"allocations/record":  float64(o.mallocs) / done,
		"offered again, in %": float64(o.waits) / done * 100,
	}}
	if p.mode == stopped {
		s.More["lost, in %"] = float64(o.lost) / done * 100
		delete(s.More, "offered again, in %")
	}
	return s
}

// measure publishes the records. The reader, if there is one, has read the last
// of them when it returns.
func (p publication) measure(w way) outcome {
	p.warmUp(w)
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var o outcome
	switch p.mode {
	case idle:
		o = p.measureIdle(w)
	case keepingUp:
		o = p.measureKeepingUp(w)
	default:
		o = p.measureStopped(w)
	}
	runtime.ReadMemStats(&after)
	o.mallocs = after.Mallocs - before.Mallocs
	return o
}

// warmUp goes once around what is reused, so that every page has been touched.
func (p publication) warmUp(w way) {
	if p.mode == stopped {
		return
	}
	r := sampleRecord
	for range 6 * window / burst {
		for range burst {
			for !w.publish(&r) {
				w.read(burst)
				runtime.Gosched()
			}
		}
		drain(w)
	}
}

func drain(w way) {
	for w.read(burst) > 0 {
	}
}

func (p publication) measureIdle(w way) (sum outcome) {
	for left := p.records; left > 0; left -= burst {
		o := p.produce(w, min(left, burst), offerAgain)
		drain(w)
		sum.elapsed += o.elapsed
		sum.waits += o.waits
	}
	return sum
}

func (p publication) measureKeepingUp(w way) outcome {
	var reader sync.WaitGroup
	reader.Go(func() {
		for left := p.records; left > 0; {
			n := w.read(left)
			if n == 0 {
				runtime.Gosched()
			}
			left -= n
		}
	})
	start := time.Now()
	o := p.produce(w, p.records, offerAgain)
	reader.Wait()
	o.elapsed = time.Since(start)
	return o
}

// A reader that is stopped is met by bursts, which make two million records a
// second together: more than an exchange has. At the full speed of a loop no disk
// could make files ready in time.
const (
	stoppedBurst = 4000
	stoppedEvery = 2 * time.Millisecond
)

func (p publication) measureStopped(w way) (sum outcome) {
	due := time.Now()
	for left := p.records; left > 0; left -= stoppedBurst {
		time.Sleep(time.Until(due))
		due = due.Add(stoppedEvery)
		o := p.produce(w, min(left, stoppedBurst), letGo)
		sum.elapsed += o.elapsed
		sum.lost += o.lost
	}
	return sum
}

// What happens to a record that finds no place.
const (
	offerAgain = true
	letGo      = false
)

// produce publishes n records from all producers at once.
func (p publication) produce(w way, n int, again bool) outcome {
	var lost, waits atomic.Int64
	var producers sync.WaitGroup
	begin := make(chan struct{})
	for i := range p.producers {
		share := n / p.producers
		if i == 0 {
			share += n % p.producers
		}
		producers.Go(func() {
			<-begin
			l, a := offer(w, share, again)
			lost.Add(l)
			waits.Add(a)
		})
	}
	start := time.Now()
	close(begin)
	producers.Wait()
	return outcome{elapsed: time.Since(start), lost: lost.Load(), waits: waits.Load()}
}

func offer(w way, n int, again bool) (lost, waits int64) {
	r := sampleRecord
	for i := range n {
		r.Time = int64(i)
		for !w.publish(&r) {
			if !again {
				lost++
				break
			}
			waits++
			runtime.Gosched()
		}
	}
	return lost, waits
}

// sampleRecord is what is published, but for its numbers.
var sampleRecord = func() record.Record {
	r := record.Record{Header: record.Header{
		Version: record.Version, Type: record.TypeOrderInsert, Seq: 1, Instrument: record.MustSymbol("IF2501"),
	}}
	for i := range r.Body {
		r.Body[i] = byte(i)
	}
	return r
}()
