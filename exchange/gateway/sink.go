package gateway

import "github.com/countinghouse/countinghouse/record"

// Sink takes records; *outbox.Writer is one. Its methods are for one goroutine
// and never block.
type Sink interface {
	// Reserve reports whether the next n calls of Next will succeed.
	Reserve(n int) bool
	// Next returns the slot of the next record. Its Global is set; all else is
	// for the caller to overwrite. It is not visible to readers yet.
	Next() *record.Record
	// Commit marks the last slot handed out with record.FlagLast and publishes
	// all slots handed out since the last Commit.
	Commit()
	// Published returns the Global of the last published record.
	Published() uint64
}

// Memory is a bounded Sink in memory, for tests and benchmarks.
type Memory struct {
	records []record.Record // published and pending, in order
	first   uint64          // Global of records[0]
	pending int
	limit   int
}

// NewMemory returns a sink that holds up to limitRecords records and continues
// after Global published (0 for an empty history).
func NewMemory(limitRecords int, published uint64) *Memory {
	return &Memory{records: make([]record.Record, 0, limitRecords), first: published + 1, limit: limitRecords}
}

// Reserve reports whether n more records fit.
func (m *Memory) Reserve(n int) bool { return len(m.records)+n <= m.limit }

// Next returns the next slot. Calls beyond what Reserve granted enlarge the sink.
func (m *Memory) Next() *record.Record {
	m.records = append(m.records, record.Record{})
	m.pending++
	r := &m.records[len(m.records)-1]
	r.Global = m.first + uint64(len(m.records)) - 1
	return r
}

// Commit publishes the pending records.
func (m *Memory) Commit() {
	if m.pending > 0 {
		m.records[len(m.records)-1].Flags |= record.FlagLast
		m.pending = 0
	}
}

// Published returns the Global of the last published record.
func (m *Memory) Published() uint64 { return m.first + uint64(len(m.records)-m.pending) - 1 }

// Records returns the published records that were not discarded. They are valid
// until Discard.
func (m *Memory) Records() []record.Record { return m.records[:len(m.records)-m.pending] }

// Discard forgets all published records, which makes room for others.
func (m *Memory) Discard() {
	m.first = m.Published() + 1
	m.records = append(m.records[:0], m.records[len(m.records)-m.pending:]...)
}
