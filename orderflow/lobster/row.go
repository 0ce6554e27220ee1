package lobster

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/countinghouse/countinghouse/orderflow"
	"github.com/countinghouse/countinghouse/record"
)

// ErrFormat means that a file is not of this format. The message names the line
// and the field.
var ErrFormat = errors.New("not a LOBSTER file")

// The types of messages.
const (
	submission      = 1
	partialCancel   = 2
	deletion        = 3
	execution       = 4
	hiddenExecution = 5
	crossTrade      = 6
	tradingHalt     = 7
)

const (
	timeDecimals = 9
	dayMax       = 48 * 3600 * 1e9 // ns after midnight
	sizeMax      = 1 << 40         // lots of one row
	fields       = 6
)

var fieldNames = [fields]string{"time", "type", "order id", "size", "price", "direction"}

// row is one message.
type row struct {
	time  int64 // ns after midnight
	kind  int64
	order uint64
	size  int64 // lots
	price int64 // ticks
	side  record.Side
}

func (s *Source) parse(line []byte) (r row, err error) {
	var f [fields][]byte
	if line = bytes.TrimSuffix(line, []byte("\r")); !orderflow.Fields(line, f[:]) {
		return r, fmt.Errorf("line %d: %w: %d fields, not %d", s.lines.Number(), ErrFormat, bytes.Count(line, []byte(","))+1, fields)
	}
	if r.time, err = orderflow.ParseFixed(f[0], timeDecimals, false); err != nil {
		return r, s.fieldError(0, err)
	}
	if r.time < s.last || r.time > dayMax {
		return r, s.fieldError(0, fmt.Errorf("%s does not follow the row before", f[0]))
	}
	s.last = r.time
	if r.kind, err = orderflow.ParseUint(f[1]); err != nil {
		return r, s.fieldError(1, err)
	}
	if r.kind < submission || r.kind > tradingHalt {
		return r, s.fieldError(1, fmt.Errorf("%d is none of 1 to 7", r.kind))
	}
	if r.kind >= hiddenExecution {
		return r, nil // halts have no order, price or size to check
	}
	return r, s.parseOrder(&r, &f)
}

func (s *Source) parseOrder(r *row, f *[fields][]byte) error {
	id, err := orderflow.ParseUint(f[2])
	if err != nil {
		return s.fieldError(2, err)
	}
	r.order = uint64(id)
	if r.size, err = orderflow.ParseUint(f[3]); err != nil || r.size == 0 || r.size > sizeMax {
		return s.fieldError(3, fmt.Errorf("%.40q is not 1 to %d", f[3], int64(sizeMax)))
	}
	if r.price, err = s.ticks(f[4]); err != nil {
		return s.fieldError(4, err)
	}
	switch string(f[5]) {
	case "1":
		r.side = record.Buy
	case "-1":
		r.side = record.Sell
	default:
		return s.fieldError(5, fmt.Errorf("%.40q is neither 1 nor -1", f[5]))
	}
	return nil
}

// ticks reads a price.
func (s *Source) ticks(b []byte) (int64, error) {
	price, err := orderflow.ParseUint(b)
	if err != nil {
		return 0, err
	}
	if price%s.opts.TickUnits != 0 {
		return 0, fmt.Errorf("%d is not a multiple of the tick, %d", price, s.opts.TickUnits)
	}
	return price / s.opts.TickUnits, nil
}

func (s *Source) fieldError(field int, err error) error {
	return fmt.Errorf("line %d, field %s: %w: %w", s.lines.Number(), fieldNames[field], ErrFormat, err)
}
