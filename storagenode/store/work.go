package store

import (
	"sync"
	"sync/atomic"
	"time"
)

// work runs a shard's two background goroutines, one that flushes and one that
// merges, so that a long merge delays no flush.
type work struct {
	mu   sync.Mutex
	cond *sync.Cond // something below changed, or memory became free
	// The queues hold each instrument at most once.
	flushes []*instrument
	merges  map[*instrument]bool
	largest bool // the memtables together are over their bound
	ended   atomic.Bool
	wg      sync.WaitGroup

	interrupted   chan struct{} // closed by interrupt
	interruptOnce sync.Once
}

func (w *work) init() {
	w.cond = sync.NewCond(&w.mu)
	w.merges = map[*instrument]bool{}
	w.interrupted = make(chan struct{})
}

func (w *work) start(s *Shard) {
	for _, in := range s.owned.Load().sorted {
		if from, to := mergeRange(in.view.Load().tables, s.opts.TableBytesMax); to > from {
			w.merges[in] = true
		}
	}
	w.wg.Go(func() { w.runFlushes(s) })
	w.wg.Go(func() { w.runMerges(s) })
}

// stop ends both goroutines and waits for them.
func (w *work) stop() {
	w.ended.Store(true)
	w.interrupt()
	w.wg.Wait()
}

func (w *work) interrupt() {
	w.interruptOnce.Do(func() { close(w.interrupted) })
	w.wakeAll()
}

func (w *work) isInterrupted() bool {
	select {
	case <-w.interrupted:
		return true
	default:
		return false
	}
}

// pause waits before the next attempt on a full disk, and reports false if there is
// to be none.
func (w *work) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.interrupted:
		return false
	}
}

func (w *work) stopped() bool { return w.ended.Load() }

func (w *work) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cond.Broadcast()
}

// flush asks for in to be flushed.
func (w *work) flush(in *instrument) {
	if in.queued.Swap(true) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flushes = append(w.flushes, in)
	w.cond.Broadcast()
}

// flushLargest asks for flushes until the memtables are within their bound.
func (w *work) flushLargest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.largest {
		w.largest = true
		w.cond.Broadcast()
	}
}

func (w *work) merge(in *instrument) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.merges[in] = true
	w.cond.Broadcast()
}

// madeRoom tells an Append that waits for memory to look again.
func (w *work) madeRoom() { w.wakeAll() }

// waitForRoom waits until the memtables are below twice their bound, or nothing
// will be flushed any more. It reports false if it was interrupted before.
func (w *work) waitForRoom(s *Shard) bool {
	start := time.Now()
	s.metrics.stalls.Add(1)
	w.mu.Lock()
	w.largest = true
	w.cond.Broadcast()
	over := func() bool { return s.memBytes.Load() >= 2*s.opts.MemtableTotalBytesMax }
	for over() && s.poison.Load() == nil && !w.isInterrupted() {
		w.cond.Wait()
	}
	w.mu.Unlock()
	s.metrics.stallNanos.Add(uint64(time.Since(start)))
	return !over() || s.poison.Load() != nil
}

// runFlushes serves the flush queue first and the total bound after it.
func (w *work) runFlushes(s *Shard) {
	for {
		in, ok := w.nextFlush(s)
		if !ok {
			return
		}
		if in == nil {
			if in = s.largestMemtable(); in == nil {
				continue
			}
		}
		in.queued.Store(false) // what is appended from here on may queue it again
		if err := s.flushInstrument(in); noRoom(err) {
			w.flush(in)
			if !w.pause(s.opts.FullDiskRetry) {
				return
			}
		} else if err != nil {
			return // poisoned
		}
	}
}

// nextFlush waits for something to flush: an instrument, or nil for the largest.
func (w *work) nextFlush(s *Shard) (*instrument, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.stopped() || s.poison.Load() != nil:
			return nil, false
		case len(w.flushes) > 0:
			in := w.flushes[0]
			w.flushes = w.flushes[1:]
			return in, true
		case w.largest:
			if s.memBytes.Load() >= s.opts.MemtableTotalBytesMax {
				return nil, true
			}
			w.largest = false
		default:
			w.cond.Wait()
		}
	}
}

// largestMemtable returns the instrument with the most bytes to flush.
func (s *Shard) largestMemtable() *instrument {
	var best *instrument
	var most int64
	for _, in := range s.owned.Load().sorted {
		if n := in.view.Load().memBytes; n > most {
			best, most = in, n
		}
	}
	return best
}

func (w *work) runMerges(s *Shard) {
	for {
		in, ok := w.nextMerge(s)
		if !ok {
			return
		}
		s.mergeInstrument(in)
	}
}

func (w *work) nextMerge(s *Shard) (*instrument, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.stopped() || s.poison.Load() != nil {
			return nil, false
		}
		for in := range w.merges {
			delete(w.merges, in)
			return in, true
		}
		w.cond.Wait()
	}
}
