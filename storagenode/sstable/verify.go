package sstable

import (
	"errors"

	"github.com/countinghouse/countinghouse/record"
)

// Verify re-reads all of the table that was just opened: every block, record
// and filter page, and the sums in the footer. It calls report for each damage
// and goes on. progress is called with the number of records of each block that
// was read; an error it returns, or an I/O error, ends the check.
func (t *Table) Verify(report func(*CorruptError), progress func(records int) error) error {
	whole := true
	damage := func(err error) error {
		var c *CorruptError
		if !errors.As(err, &c) {
			return err
		}
		whole = false
		report(c)
		return nil
	}
	sum := footer{}
	for i := range t.Blocks() {
		rs, err := t.BlockAhead(i, t.Blocks())
		if err == nil {
			err = t.verifyBlock(i, rs, &sum)
		}
		if err != nil {
			if err := damage(err); err != nil {
				return err
			}
		}
		if err := progress(len(rs)); err != nil {
			return err
		}
	}
	for page := range uint64(t.foot.pages) {
		if _, err := t.filterPage(page); err != nil {
			if err := damage(err); err != nil {
				return err
			}
		}
	}
	if whole {
		return damage(t.verifySums(&sum))
	}
	return nil
}

// verifyBlock checks the records of block i, whose checksum is right, and adds
// them to sum.
func (t *Table) verifyBlock(i int, rs []record.Record, sum *footer) error {
	crc, count, lo, hi := t.blockEntry(i)
	sum.dataCRC = CombineCRC(sum.dataCRC, crc, int64(count)*record.Size)
	for j := range rs {
		r, seq := &rs[j], t.BlockFirstSeq(i)+uint64(j)
		var what string
		switch err := r.Check(); {
		case err != nil:
			what = err.Error()
		case r.Seq != seq || r.Instrument != t.foot.Instrument:
			what = "record " + r.Instrument.String() + " out of its place"
		case r.Time < lo || r.Time > hi:
			what = "a record's time is outside the index entry's"
		default:
			continue
		}
		c := t.corrupt(int64(i)*BlockSize+int64(j)*record.Size, "%s", what)
		c.Block, c.FirstSeq, c.LastSeq = i, seq, seq
		return c
	}
	sum.LastGlobal, sum.LastTime = rs[len(rs)-1].Global, rs[len(rs)-1].Time
	return nil
}

// verifySums compares the footer with what all blocks added up to.
func (t *Table) verifySums(sum *footer) error {
	f := &t.foot
	chain := CombineCRC(f.ChainBefore, sum.dataCRC, int64(f.Records())*record.Size)
	if sum.dataCRC != f.dataCRC || chain != f.ChainAfter || sum.LastGlobal != f.LastGlobal || sum.LastTime != f.LastTime {
		return t.corrupt(f.Size-FooterSize, "the footer's sums do not fit the records")
	}
	return nil
}
