package wal

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Finding is one thing that Verify found.
type Finding struct {
	File   string // path
	Offset int64  // bytes from the start of the file
	Reason string
	// Torn marks the remnants of an unfinished write. They are what a crash
	// leaves; Open cuts them off. Every other finding is damage.
	Torn bool
}

// Summary is what Verify read.
type Summary struct {
	Segments   int
	Entries    uint64 // good ones
	FirstIndex uint64 // 0 for an empty log
	LastIndex  uint64
	Bytes      int64 // of frames
	Damaged    int   // findings that are damage
}

// Verify checks every frame of the log in dir, changes nothing, takes no lock,
// and calls report for each finding. The directory must be that of a stopped
// node, or a copy. Unlike Open it goes on behind damage, as far as the headers
// lead it. The error is of the file system, or matches ErrVersion; damage is
// only reported.
func Verify(fs vfs.FS, dir string, report func(Finding)) (Summary, error) {
	c := checker{report: report, v: &survey{fs: fs, dir: dir}}
	if err := c.v.list(); err != nil {
		return c.sum, err
	}
	newest, err := c.v.newest()
	if err = c.damage(err); err != nil || newest == nil {
		return c.sum, err
	}
	if err := c.newest(newest); err != nil {
		return c.sum, err
	}
	if err := c.older(newest); err != nil {
		return c.sum, err
	}
	return c.sum, c.extent()
}

type checker struct {
	v      *survey
	report func(Finding)
	sum    Summary
}

// damage reports err if it is damage, and returns it if it is not.
func (c *checker) damage(err error) error {
	var d *CorruptError
	if !errors.As(err, &d) {
		return err
	}
	c.sum.Damaged++
	c.report(Finding{File: d.File, Offset: d.Offset, Reason: d.Reason})
	return nil
}

// newest checks the segment with the open end.
func (c *checker) newest(s *surveyed) error {
	damage := c.v.readNewest(s)
	if c.v.chain == nil && !errors.Is(damage, ErrCorrupt) {
		return damage
	}
	if err := c.damage(damage); err != nil {
		return err
	}
	if damage != nil { // take in what stands behind it
		err := c.v.load(s.path, s.header.fileBytes, func(l *load) { c.resume(s, l, int64(len(l.buf))) })
		if err != nil {
			return err
		}
		c.v.logStart = max(s.header.logStart, s.scan.logStart)
		c.v.chain = []*surveyed{s}
	} else if c.v.tail.torn {
		c.report(Finding{File: s.path, Offset: s.end, Torn: true, Reason: fmt.Sprintf("%d bytes of an unfinished write", c.v.tail.end-s.end)})
	}
	c.count(s)
	return nil
}

// older checks the segments in front of next.
func (c *checker) older(next *surveyed) error {
	for next.header.previous != 0 && next.header.firstIndex > c.v.logStart {
		s, err := c.v.readSealed(next)
		if err = c.damage(err); err != nil {
			return err
		}
		if s == nil {
			if s, err = c.sealed(next); err != nil || s == nil {
				return err
			}
		}
		c.count(s)
		c.v.chain = append([]*surveyed{s}, c.v.chain...)
		next = s
	}
	return nil
}

// sealed takes in what is good of the damaged segment before next; nil if its
// header is not.
func (c *checker) sealed(next *surveyed) (*surveyed, error) {
	s, err := c.v.open(next.header.previous)
	if err != nil {
		if errors.Is(err, ErrVersion) {
			return nil, err
		}
		return nil, nil //nolint:nilerr // the damage was reported already
	}
	err = c.v.load(s.path, next.header.previousEnd, func(l *load) {
		s.scan = scanFrames(l, &s.header, nil)
		c.resume(s, l, next.header.previousEnd)
	})
	return s, err
}

// resume goes on behind damage at s.end up to limit. The first damage was
// reported; each further one is.
func (c *checker) resume(s *surveyed, l *load, limit int64) {
	for first := true; s.end < limit; first = false {
		at, found := nextGood(l, s.end, s.header.salt)
		if !found {
			return
		}
		if !first {
			c.sum.Damaged++
			c.report(Finding{File: s.path, Offset: s.end, Reason: fmt.Sprintf("no good frame for %d bytes", at.from-s.end)})
		}
		s.end, s.group, s.complete = at.from, at.group-1, true
		if at.index != 0 {
			s.next = at.index
		}
		for s.step(l, s.header.salt, nil) {
		}
	}
}

// resumption is where good frames start again.
type resumption struct {
	from  int64
	index uint64 // of the entry there; 0 for another frame
	group uint32
}

// nextGood finds the first good frame at or behind from.
func nextGood(l *load, from int64, salt uint64) (resumption, bool) {
	for at := align(from); l.upTo(at + frameHeaderSize); at += frameAlign {
		f, ok := parseHeader(l.buf[at:], salt)
		if !ok || !l.upTo(at+f.size()) || !bodyOK(l.buf[at:], &f, salt) {
			continue
		}
		r := resumption{from: at, group: f.group}
		if f.kind == frameEntry {
			r.index = f.index
		}
		return r, true
	}
	return resumption{}, false
}

func (c *checker) count(s *surveyed) {
	c.sum.Segments++
	c.sum.Bytes += s.end - frameStart
	c.sum.Entries += uint64(len(s.offsets))
}

// extent sums up what the chain holds.
func (c *checker) extent() error {
	oldest := c.v.chain[0]
	if err := c.damage(c.v.extent()); err != nil {
		return err
	}
	c.sum.FirstIndex, c.sum.LastIndex = c.v.logStart, c.v.last
	if c.v.last == 0 {
		c.sum.Entries = 0
	} else if below := c.v.logStart - oldest.header.firstIndex; oldest.header.firstIndex < c.v.logStart {
		c.sum.Entries -= min(below, c.sum.Entries)
	}
	return nil
}
