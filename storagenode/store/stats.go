package store

import "github.com/countinghouse/countinghouse/record"

// Stats states what is held of one instrument.
type Stats struct {
	Instrument      record.Symbol
	Epoch           uint64
	LastSeq         uint64
	MemtableRecords uint64 // MemtableRecords + TableRecords == LastSeq
	TableRecords    uint64
	Tables          int
	TableBytes      uint64
	Chain           uint32 // CRC32C over all record bytes of the stream, in order
	FirstTime       int64  // Unix nanoseconds of the first record
	LastTime        int64  // Unix nanoseconds of the last record
	LastGlobal      uint64
	Index           uint64 // Raft index of the last entry that changed the instrument
}

func (in *instrument) stats() Stats {
	v := in.view.Load()
	st := Stats{
		Instrument: in.sym, Epoch: v.epoch, LastSeq: v.lastSeq, Tables: len(v.tables), Chain: v.chain,
		FirstTime: v.firstTime, LastTime: v.lastTime, LastGlobal: v.lastGlobal, Index: v.index,
		TableRecords: v.tablesEnd(), MemtableRecords: v.lastSeq - v.tablesEnd(),
	}
	for _, t := range v.tables {
		st.TableBytes += uint64(t.meta.size)
	}
	return st
}

// Instruments returns the state of every owned instrument, sorted by name. Each
// is consistent in itself.
func (s *Shard) Instruments() []Stats {
	sorted := s.owned.Load().sorted
	all := make([]Stats, len(sorted))
	for i, in := range sorted {
		all[i] = in.stats()
	}
	return all
}

// Stats returns the state of one instrument; refusal CODE_NOT_OWNER.
func (s *Shard) Stats(sym record.Symbol) (Stats, error) {
	in, err := s.find(sym)
	if err != nil {
		return Stats{}, err
	}
	return in.stats(), nil
}

// Owned returns the instruments that the shard owns, sorted by name.
func (s *Shard) Owned() []record.Symbol {
	sorted := s.owned.Load().sorted
	syms := make([]record.Symbol, len(sorted))
	for i, in := range sorted {
		syms[i] = in.sym
	}
	return syms
}

// LastSeq returns the instrument's last seq, 0 if it holds nothing; refusal
// CODE_NOT_OWNER.
func (s *Shard) LastSeq(sym record.Symbol) (uint64, error) {
	in, err := s.find(sym)
	if err != nil {
		return 0, err
	}
	return in.view.Load().lastSeq, nil
}

// Watch returns a channel that is closed when records are applied to the
// instrument after the call, or the instrument or shard goes away. To follow a
// stream: Watch, then read up to LastSeq, then wait for the channel, and again.
// Refusal CODE_NOT_OWNER.
func (s *Shard) Watch(sym record.Symbol) (<-chan struct{}, error) {
	in, err := s.find(sym)
	if err != nil {
		return nil, err
	}
	c := in.watched()
	if s.work.stopped() || s.owned.Load().bySymbol[sym] != in { // its wake may be over
		in.wake()
	}
	return c, nil
}
