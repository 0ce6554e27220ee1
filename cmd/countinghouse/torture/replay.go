package torture

import (
	"hash/crc32"

	"github.com/countinghouse/countinghouse/record"
)

// replay checks one replica's stream of one instrument from its first record to
// its last against the ledger, whose sessions must all have ended.
type replay struct {
	ledger *ledger
	where  string // the replica, for findings
	end    uint64 // seq of the last record that must be there

	next  uint64 // seq that comes next
	chain uint32 // CRC32C over the records so far
}

func (l *ledger) replay(where string, end uint64) *replay {
	return &replay{ledger: l, where: where, end: end, next: 1}
}

// take checks the records that come next.
func (p *replay) take(rs []record.Record) {
	p.chain = crc32.Update(p.chain, record.Castagnoli, record.SliceBytes(rs))
	l := p.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range rs {
		r := &rs[i]
		switch {
		case r.Seq > p.end:
			l.report(broken, 1, "%s holds seq %d; the stream ended at seq %d", p.where, r.Seq, p.end)
			continue
		case r.Seq > p.next:
			l.report(lost, r.Seq-p.next, "%s has seq %d where seq %d must be", p.where, r.Seq, p.next)
		case r.Seq < p.next:
			l.report(duplicated, 1, "%s has seq %d again where seq %d must be", p.where, r.Seq, p.next)
			continue
		}
		l.check(r, p.where)
		p.next = r.Seq + 1
	}
}

// finish checks that nothing is missing at the end, and that the replica's own
// checksum over the stream is that of what it returned.
func (p *replay) finish(chain uint32) {
	if p.next <= p.end {
		p.ledger.report(lost, p.end+1-p.next, "%s ends at seq %d; the stream ended at seq %d", p.where, p.next-1, p.end)
	}
	if chain != p.chain {
		p.ledger.report(broken, 1, "%s states the chain %08x; its records give %08x", p.where, chain, p.chain)
	}
}
