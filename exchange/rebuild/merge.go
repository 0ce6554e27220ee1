package rebuild

import (
	"errors"
	"fmt"
	"io"

	"github.com/countinghouse/countinghouse/record"
)

// Merge yields the records of several sources, such as one for each stream, in
// the order of their Global. Records that stand in more than one source, as
// where an outbox overlaps with what is stored, must be equal and come once.
func Merge(sources ...Source) Source {
	m := &merge{sources: sources}
	return m
}

// merge is a binary heap of the sources by their next record's Global.
//
// Invariant: once started, heap[0] has the lowest Global of all, and its record
// was not yielded yet unless used is set.
type merge struct {
	sources []Source // those not started yet
	heap    []head
	used    bool // the record of heap[0] was yielded or passed over
	last    record.Record
}

type head struct {
	source Source
	r      *record.Record
}

// Next returns the record with the lowest Global of all sources.
func (m *merge) Next() (*record.Record, error) {
	for {
		if err := m.advance(); err != nil {
			return nil, err
		}
		if len(m.heap) == 0 {
			return nil, io.EOF
		}
		r := m.heap[0].r
		m.used = true
		if r.Global != m.last.Global {
			m.last = *r
			return &m.last, nil
		}
		if *r != m.last {
			return nil, fmt.Errorf("%w: record %d stands twice, as %q and as %q", record.ErrCorrupt, r.Global, m.last.String(), r.String())
		}
	}
}

// advance brings the record to yield next to the top of the heap.
func (m *merge) advance() error {
	for _, s := range m.sources {
		m.heap = append(m.heap, head{source: s})
		if err := m.refill(len(m.heap) - 1); err != nil {
			return err
		}
	}
	if m.sources != nil {
		m.sources = nil
		for i := len(m.heap)/2 - 1; i >= 0; i-- {
			m.sink(i)
		}
	}
	if !m.used {
		return nil
	}
	m.used = false
	if err := m.refill(0); err != nil {
		return err
	}
	m.sink(0)
	return nil
}

// refill fetches the next record of the source at i, or takes the source out.
func (m *merge) refill(i int) error {
	r, err := m.heap[i].source.Next()
	switch {
	case errors.Is(err, io.EOF):
		end := len(m.heap) - 1
		m.heap[i] = m.heap[end]
		m.heap = m.heap[:end]
		return nil
	case err != nil:
		return err
	}
	m.heap[i].r = r
	return nil
}

// sink moves the head at i down to where it belongs.
func (m *merge) sink(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(m.heap); child++ {
			if m.heap[child].r.Global < m.heap[least].r.Global {
				least = child
			}
		}
		if least == i {
			return
		}
		m.heap[i], m.heap[least] = m.heap[least], m.heap[i]
		i = least
	}
}
