package l3

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

type action uint8

const (
	created action = iota
	changed
	removed
)

// row is one line of a capture.
type row struct {
	id       uint64
	received int64 // Unix ms
	price    int64 // ticks
	volume   int64 // lots left
	action   action
	side     record.Side
}

// receivedMax is the largest receive time, in ms, whose nanoseconds fit an int64.
const receivedMax = 1<<63/1_000_000 - 1

func (s *Source) parse(line []byte) (row, error) {
	var f [columns][]byte
	if line = bytes.TrimSuffix(line, []byte("\r")); !orderflow.Fields(line, f[:]) {
		return row{}, fmt.Errorf("line %d: %w: %d columns, not %d", s.lines.Number(), ErrFormat, bytes.Count(line, []byte(","))+1, columns)
	}
	return s.parseFields(&f)
}

func (s *Source) parseFields(f *[columns][]byte) (r row, err error) {
	id, err := orderflow.ParseUint(f[0])
	if err != nil {
		return r, s.columnError(0, err)
	}
	r.id = uint64(id)
	if r.received, err = orderflow.ParseUint(f[1]); err != nil {
		return r, s.columnError(1, err)
	}
	if r.received < s.last || r.received > receivedMax {
		return r, s.columnError(1, fmt.Errorf("%d comes after %d; rows must be in the order they were received", r.received, s.last))
	}
	s.last = r.received
	if _, err = orderflow.ParseUint(f[2]); err != nil {
		return r, s.columnError(2, err)
	}
	if r.price, err = orderflow.ParseFixed(f[3], s.opts.PriceDecimals, true); err != nil {
		return r, s.columnError(3, err)
	}
	if r.volume, err = orderflow.ParseUint(f[4]); err != nil {
		return r, s.columnError(4, err)
	}
	if r.action, err = parseAction(f[5]); err != nil {
		return r, s.columnError(5, err)
	}
	if r.side, err = parseDirection(f[6]); err != nil {
		return r, s.columnError(6, err)
	}
	return r, nil
}

func parseAction(b []byte) (action, error) {
	switch string(b) {
	case "created":
		return created, nil
	case "changed":
		return changed, nil
	case "deleted":
		return removed, nil
	}
	return 0, errors.New(quoted(b) + " is none of created, changed, deleted")
}

func parseDirection(b []byte) (record.Side, error) {
	switch string(b) {
	case "bid":
		return record.Buy, nil
	case "ask":
		return record.Sell, nil
	}
	return 0, errors.New(quoted(b) + " is neither bid nor ask")
}

func quoted(b []byte) string { return fmt.Sprintf("%.40q", b) }

func (s *Source) columnError(column int, err error) error {
	return fmt.Errorf("line %d, column %s: %w: %w", s.lines.Number(), columnNames[column], ErrFormat, err)
}
