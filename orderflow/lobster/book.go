package lobster

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

// levelsMax bounds the levels of one side of an opening book.
const levelsMax = 1000

// noPrice stands for an empty level, positive for asks and negative for bids.
const noPrice = "9999999999"

// open queues the orders of the opening book, given the first message.
func (s *Source) open(first row) error {
	if s.opts.Book == nil {
		return nil
	}
	levels, err := s.readBook(s.opts.Book)
	if err != nil {
		return fmt.Errorf("opening book: %w", err)
	}
	for _, l := range undo(levels, first) {
		s.stats.Opening++
		l.order = openingIDs | uint64(s.stats.Opening)
		l.time = first.time
		s.opening[place{l.side, l.price}] = &openingOrder{id: l.order, open: l.size}
		s.queue = append(s.queue, s.limitOrder(l))
	}
	return nil
}

// readBook reads the first row of a book file: for each level ask price, ask
// size, bid price, bid size, best first.
func (s *Source) readBook(r io.Reader) ([]row, error) {
	lines, err := orderflow.NewLines(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	line, ok := lines.Next()
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if !ok {
		return nil, fmt.Errorf("%w: the file is empty", ErrFormat)
	}
	f := bytes.Split(bytes.TrimSuffix(line, []byte("\r")), []byte(","))
	if len(f)%4 != 0 || len(f) > 4*levelsMax {
		return nil, fmt.Errorf("line %d: %w: %d fields, not 4 for each of at most %d levels", lines.Number(), ErrFormat, len(f), levelsMax)
	}
	var levels []row
	for i := 0; i < len(f); i += 2 {
		side := record.Sell
		if i%4 == 2 {
			side = record.Buy
		}
		if levels, err = s.appendLevel(levels, side, f[i], f[i+1]); err != nil {
			return nil, fmt.Errorf("line %d, level %d: %w", lines.Number(), i/4+1, err)
		}
	}
	return levels, uncrossed(levels)
}

// appendLevel appends the level unless it is empty.
func (s *Source) appendLevel(levels []row, side record.Side, price, size []byte) ([]row, error) {
	if string(bytes.TrimPrefix(price, []byte("-"))) == noPrice {
		return levels, nil
	}
	p, err := s.ticks(price)
	if err != nil {
		return nil, fmt.Errorf("%v price: %w: %w", side, ErrFormat, err)
	}
	n, err := orderflow.ParseUint(size)
	if err != nil || n == 0 || n > sizeMax {
		return nil, fmt.Errorf("%v size: %w: %.40q is not 1 to %s", side, ErrFormat, size, strconv.FormatInt(sizeMax, 10))
	}
	for i := len(levels) - 1; i >= 0; i-- {
		if l := levels[i]; l.side == side && (l.price == p || l.price > p == (side == record.Sell)) {
			return nil, fmt.Errorf("%v price: %w: levels are not in order of price", side, ErrFormat)
		}
	}
	return append(levels, row{side: side, price: p, size: n}), nil
}

func uncrossed(levels []row) error {
	ask := slices.IndexFunc(levels, func(l row) bool { return l.side == record.Sell })
	bid := slices.IndexFunc(levels, func(l row) bool { return l.side == record.Buy })
	if ask >= 0 && bid >= 0 && levels[ask].price <= levels[bid].price {
		return fmt.Errorf("line 1: %w: the best bid is not below the best ask", ErrFormat)
	}
	return nil
}

// undo returns the levels as they were before the first message.
func undo(levels []row, first row) []row {
	change := int64(0)
	switch first.kind {
	case submission:
		change = -first.size
	case partialCancel, deletion, execution:
		change = first.size
	}
	at := slices.IndexFunc(levels, func(l row) bool { return l.side == first.side && l.price == first.price })
	switch {
	case change == 0:
	case at >= 0:
		levels[at].size += change
		if levels[at].size <= 0 {
			levels = slices.Delete(levels, at, at+1)
		}
	case change > 0:
		levels = append(levels, row{side: first.side, price: first.price, size: change})
	}
	return levels
}
