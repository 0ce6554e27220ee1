package subscriber

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// watermark is a number that only rises, and those who wait for it. Reading it
// costs one atomic load; a rise costs only those waiters that it reaches.
type watermark struct {
	value atomic.Uint64

	mu      sync.Mutex
	waiting waiters
	err     error  // set when it will not rise above end any more
	end     uint64 // valid with err
}

// waiter is called once, when the watermark reaches at or will not any more.
type waiter struct {
	at    uint64
	call  func(error)
	index int // in the heap, -1 once it is out
}

func (m *watermark) load() uint64 { return m.value.Load() }

// raise sets the watermark if it is higher and calls who waited for that.
func (m *watermark) raise(v uint64) {
	if v <= m.value.Load() {
		return
	}
	m.mu.Lock()
	m.value.Store(max(v, m.value.Load())) // another one may have raised it higher
	var due []*waiter
	for len(m.waiting) > 0 && m.waiting[0].at <= v {
		due = append(due, heap.Pop(&m.waiting).(*waiter))
	}
	m.mu.Unlock()
	for _, w := range due {
		w.call(nil)
	}
}

// fail ends every wait with err, now and later.
func (m *watermark) fail(err error) { m.failAbove(0, err) }

// failAbove ends every wait for more than end with err, now and later.
func (m *watermark) failAbove(end uint64, err error) {
	m.mu.Lock()
	if m.err == nil || end < m.end {
		m.err, m.end = err, end
	}
	var due []*waiter
	for _, w := range slices.Clone(m.waiting) {
		if w.at > end {
			heap.Remove(&m.waiting, w.index)
			due = append(due, w)
		}
	}
	m.mu.Unlock()
	for _, w := range due {
		w.call(err)
	}
}

// failure returns what fail was given, nil before it.
func (m *watermark) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// notify calls call once at has been reached, at once if it has, and returns
// the waiter, nil if call was made already.
func (m *watermark) notify(at uint64, call func(error)) *waiter {
	m.mu.Lock()
	reached := at <= m.value.Load()
	if reached || m.err != nil && at > m.end {
		err := m.err
		if reached {
			err = nil
		}
		m.mu.Unlock()
		call(err)
		return nil
	}
	w := &waiter{at: at, call: call}
	heap.Push(&m.waiting, w)
	m.mu.Unlock()
	return w
}

func (m *watermark) cancel(w *waiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w != nil && w.index >= 0 {
		heap.Remove(&m.waiting, w.index)
	}
}

// waited reports whether anybody waits.
func (m *watermark) waited() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting) > 0
}

func (m *watermark) wait(ctx context.Context, at uint64) error {
	return m.waitAnd(ctx, at, func() {})
}

// waitAnd is wait that calls waiting once it does.
func (m *watermark) waitAnd(ctx context.Context, at uint64, waiting func()) error {
	if at <= m.load() {
		return nil
	}
	done := make(chan error, 1)
	w := m.notify(at, func(err error) { done <- err })
	waiting()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		m.cancel(w)
		return ctx.Err()
	}
}

// waiters is a heap by at.
type waiters []*waiter

func (h waiters) Len() int           { return len(h) }
func (h waiters) Less(i, j int) bool { return h[i].at < h[j].at }
func (h waiters) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *waiters) Push(x any) {
	w := x.(*waiter)
	w.index = len(*h)
	*h = append(*h, w)
}

// Pop implements heap.Interface.
func (h *waiters) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	w.index = -1
	return w
}
