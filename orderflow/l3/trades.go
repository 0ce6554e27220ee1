package l3

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/countinghouse/countinghouse/orderflow"
)

// tradesMax bounds the trades of one file.
const tradesMax = 1 << 24

// TradeOptions say how the numbers of a trades file are to be read.
type TradeOptions struct {
	PriceDecimals  int // decimals of a price in ticks, at most 12
	VolumeDecimals int // decimals of an amount in lots, at most 12
}

// ReadTrades reads the trades that the exchange reported, gzipped or plain, one a
// line: receive time in Unix milliseconds, the word "trade", and a JSON object
// with price, amount and id. The numbers are printed binary fractions; they are
// rounded to ticks and lots. Errors wrap ErrFormat and name the line and field.
func ReadTrades(r io.Reader, opts TradeOptions) ([]orderflow.Trade, error) {
	lines, err := orderflow.NewLines(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	var trades []orderflow.Trade
	for {
		line, ok := lines.Next()
		if !ok {
			break
		}
		t, err := parseTrade(line, opts)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", lines.Number(), ErrFormat, err)
		}
		if len(trades) == tradesMax {
			return nil, fmt.Errorf("line %d: more than %d trades in one file; split it", lines.Number(), tradesMax)
		}
		trades = append(trades, t)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return trades, nil
}

type jsonTrade struct {
	Price  json.Number `json:"price"`
	Amount json.Number `json:"amount"`
	ID     uint64      `json:"id"`
}

func parseTrade(line []byte, opts TradeOptions) (t orderflow.Trade, err error) {
	received, rest, _ := bytes.Cut(line, []byte(" "))
	ms, err := orderflow.ParseUint(received)
	if err != nil || ms > receivedMax {
		return t, fmt.Errorf("receive time: %w: %s", orderflow.ErrNumber, quoted(received))
	}
	word, object, _ := bytes.Cut(rest, []byte(" "))
	if string(word) != "trade" {
		return t, fmt.Errorf("second field is %s, not \"trade\"", quoted(word))
	}
	var j jsonTrade
	if err := json.Unmarshal(object, &j); err != nil {
		return t, fmt.Errorf("object: %w", err)
	}
	if t.Price, err = parseNumber(j.Price, opts.PriceDecimals); err != nil {
		return t, fmt.Errorf("price %w", err)
	}
	if t.Volume, err = parseNumber(j.Amount, opts.VolumeDecimals); err != nil {
		return t, fmt.Errorf("amount %w", err)
	}
	if t.Volume == 0 {
		return t, fmt.Errorf("amount %w: %s is less than a lot", orderflow.ErrNumber, j.Amount)
	}
	t.Time, t.ID = ms*1e6, j.ID
	return t, nil
}

// exponentMax bounds the exponents of JSON numbers, which small amounts have.
const exponentMax = 30

// parseNumber reads a JSON number, with or without an exponent.
func parseNumber(n json.Number, decimals int) (int64, error) {
	mantissa, exponent, found := strings.Cut(strings.ToLower(n.String()), "e")
	if !found {
		return orderflow.ParseFixed(mantissa, decimals, false)
	}
	e, err := strconv.Atoi(exponent)
	if err != nil || e < -exponentMax || e > exponentMax {
		return 0, fmt.Errorf("%q: %w", n, orderflow.ErrNumber)
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	if e < 0 {
		whole = strings.Repeat("0", -e) + whole
		at := len(whole) + e
		return orderflow.ParseFixed(whole[:at]+"."+whole[at:]+fraction, decimals, false)
	}
	fraction += strings.Repeat("0", e)
	return orderflow.ParseFixed(whole+fraction[:e]+"."+fraction[e:]+"0", decimals, false)
}
