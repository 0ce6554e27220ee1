package order

import (
	"bytes"
	_ "embed" // the default set
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"

	"github.com/countinghouse/countinghouse/record"
	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"
)

// ErrFile means that an instrument file cannot be used.
var ErrFile = errors.New("instrument file")

// Limits on what an instrument file may hold.
const (
	maxFileBytes   = 1 << 20
	maxInstruments = 1024
)

//go:embed instruments.yaml
var defaultFile []byte

// Set is what an instrument file describes: instruments of one currency, in
// which all accounts are kept.
type Set struct {
	Currency    string // such as "CNY"
	Decimals    int    // the minor unit is 10^-Decimals of the currency
	Instruments []Instrument
}

// DefaultSet returns the instruments that come with the project: the stock
// index futures IF2501, IC2501 and IH2501 with their contract terms. The package's
// documentation says where their exchange's rules are others.
func DefaultSet() (Set, error) { return ParseSet(defaultFile) }

// DefaultFile returns the text of the file that DefaultSet reads, as an example.
func DefaultFile() []byte { return append([]byte(nil), defaultFile...) }

// LoadSet reads an instrument file.
func LoadSet(path string) (Set, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Set{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	if info.Size() > maxFileBytes {
		return Set{}, fmt.Errorf("%w %s: %d bytes; at most %d are read", ErrFile, path, info.Size(), maxFileBytes)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Set{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	set, err := ParseSet(text)
	if err != nil {
		return Set{}, fmt.Errorf("%s: %w", path, err)
	}
	return set, nil
}

// text is a YAML string, and nothing else: a bare 0.1 would pass through a
// float64 on its way here.
type text struct{ raw json.RawMessage }

// UnmarshalJSON keeps the value as written; read judges it, knowing its field.
func (x *text) UnmarshalJSON(b []byte) error {
	x.raw = append(x.raw[:0], b...)
	return nil
}

func (x text) read(field string) (string, error) {
	var s string
	switch {
	case x.raw == nil:
		return "", fmt.Errorf("%s: missing", field)
	case json.Unmarshal(x.raw, &s) != nil:
		return "", fmt.Errorf("%s: %s is not text; write decimals in quotes, like \"0.2\"", field, x.raw)
	}
	return s, nil
}

func (x text) decimal(field string) (decimal, error) {
	s, err := x.read(field)
	if err != nil {
		return decimal{}, err
	}
	d, err := parseDecimal(s)
	if err != nil {
		return decimal{}, fmt.Errorf("%s: %w", field, err)
	}
	return d, nil
}

type fileSet struct {
	Currency    text             `json:"currency"`
	MinorUnit   text             `json:"minor_unit"`
	Instruments []fileInstrument `json:"instruments"`
}

type fileInstrument struct {
	Name           text     `json:"name"`
	Tick           text     `json:"tick"`
	Multiplier     text     `json:"multiplier"`
	LongMargin     text     `json:"long_margin"`
	ShortMargin    text     `json:"short_margin"`
	Fees           fileFees `json:"fees"`
	Reference      text     `json:"reference_price"`
	PriceLimit     text     `json:"price_limit"`
	MaxOrderVolume int64    `json:"max_order_volume"`
	PositionLimit  int64    `json:"position_limit"`
}

type fileFees struct {
	Per        text `json:"per"`
	Open       text `json:"open"`
	Close      text `json:"close"`
	CloseToday text `json:"close_today"`
}

// ParseSet reads the text of an instrument file. Unknown or doubled fields,
// inexact numbers and terms that cannot be traded on are refused with an error
// that names the field and says what would be right.
func ParseSet(b []byte) (Set, error) {
	var f fileSet
	if len(b) > maxFileBytes {
		return Set{}, fmt.Errorf("%w: %d bytes; at most %d are read", ErrFile, len(b), maxFileBytes)
	}
	if err := yaml.UnmarshalStrict(b, &f); err != nil {
		return Set{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	if !oneDocument(b) {
		return Set{}, fmt.Errorf("%w: more than one YAML document: take out the line \"---\" and what is behind it, or put it into a file of its own", ErrFile)
	}
	set, err := f.set()
	if err != nil {
		return Set{}, fmt.Errorf("%w: %w", ErrFile, err)
	}
	return set, nil
}

// oneDocument reports whether nothing comes after the first YAML document, which
// is all that UnmarshalStrict reads.
func oneDocument(b []byte) bool {
	d := yamlv2.NewDecoder(bytes.NewReader(b))
	var document any
	if d.Decode(&document) != nil {
		return true
	}
	return errors.Is(d.Decode(&document), io.EOF)
}

func (f *fileSet) set() (Set, error) {
	currency, err := f.Currency.read("currency")
	if err != nil {
		return Set{}, err
	}
	if len(currency) < 1 || len(currency) > 8 {
		return Set{}, fmt.Errorf("currency: %q is not a name such as \"CNY\"", currency)
	}
	minor, err := f.MinorUnit.decimal("minor_unit")
	if err != nil {
		return Set{}, err
	}
	if minor.coef != 1 {
		return Set{}, errors.New("minor_unit: must be 1 or a one behind zeros, such as \"0.01\"")
	}
	if n := len(f.Instruments); n == 0 || n > maxInstruments {
		return Set{}, fmt.Errorf("instruments: %d are listed; a file lists 1 to %d", n, maxInstruments)
	}
	set := Set{Currency: currency, Decimals: minor.scale}
	seen := make(map[record.Symbol]bool)
	for i := range f.Instruments {
		t, err := f.Instruments[i].terms(minor)
		if err != nil {
			return Set{}, fmt.Errorf("instruments[%d]: %w", i, err)
		}
		if seen[t.Symbol] {
			return Set{}, fmt.Errorf("instruments[%d]: name: %s is listed twice", i, t.Symbol)
		}
		seen[t.Symbol] = true
		set.Instruments = append(set.Instruments, t)
	}
	return set, nil
}

func (f *fileInstrument) terms(minor decimal) (Instrument, error) {
	name, err := f.Name.read("name")
	if err != nil {
		return Instrument{}, err
	}
	t := Instrument{MaxOrderVolume: f.MaxOrderVolume, PositionLimit: f.PositionLimit}
	if t.Symbol, err = record.MakeSymbol(name); err != nil {
		return Instrument{}, fmt.Errorf("name: %w", err)
	}
	for _, step := range []func(*Instrument, decimal) error{f.tick, f.rates, f.fees, f.prices} {
		if err := step(&t, minor); err != nil {
			return Instrument{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return t, t.Check()
}

func (f *fileInstrument) tick(t *Instrument, minor decimal) error {
	tick, err := f.Tick.decimal("tick")
	if err != nil {
		return err
	}
	if tick.coef <= 0 || tick.coef > 1<<32-1 || tick.scale > maxDecimals {
		return fmt.Errorf("tick: must be above zero with at most %d decimals and 9 significant digits", maxDecimals)
	}
	multiplier, err := f.Multiplier.decimal("multiplier")
	if err != nil {
		return err
	}
	value := new(big.Rat).Mul(tick.rat(), multiplier.rat())
	v, ok := wholeNumber(value.Quo(value, minor.rat()))
	if !ok || v <= 0 {
		return errors.New("multiplier: tick × multiplier must be a whole number of minor units above zero; choose a smaller minor_unit")
	}
	t.TickSize, t.Decimals, t.TickValue = uint32(tick.coef), uint8(tick.scale), v
	return nil
}

func (f *fileInstrument) rates(t *Instrument, _ decimal) error {
	long, err := f.LongMargin.rate("long_margin", million)
	if err != nil {
		return err
	}
	short, err := f.ShortMargin.rate("short_margin", million)
	if err != nil {
		return err
	}
	if long > million || short > million {
		return errors.New("long_margin, short_margin: must not be above \"1\", which is 100 %")
	}
	t.LongMarginPPM, t.ShortMarginPPM = uint32(long), uint32(short)
	return nil
}

// rate reads a decimal that is a whole number of parts, at least 0.
func (x text) rate(field string, parts int64) (int64, error) {
	d, err := x.decimal(field)
	if err != nil {
		return 0, err
	}
	v, ok := wholeNumber(new(big.Rat).Mul(d.rat(), big.NewRat(parts, 1)))
	if !ok || v < 0 {
		return 0, fmt.Errorf("%s: must be a whole number of 1/%d and not negative", field, parts)
	}
	return v, nil
}

func (f *fileInstrument) fees(t *Instrument, minor decimal) error {
	per, err := f.Fees.Per.read("fees.per")
	if err != nil {
		return err
	}
	parts := int64(million)
	switch per {
	case record.FeeByTurnover.String():
		t.FeeMode = record.FeeByTurnover
	case record.FeeByLot.String():
		t.FeeMode = record.FeeByLot
		var ok bool
		if parts, ok = (decimal{coef: 1}).scaled(minor.scale); !ok {
			return errors.New("minor_unit: too small")
		}
	default:
		return fmt.Errorf("fees.per: %q is neither \"turnover\" nor \"lot\"", per)
	}
	if t.FeeOpen, err = f.Fees.Open.rate("fees.open", parts); err != nil {
		return err
	}
	if t.FeeClose, err = f.Fees.Close.rate("fees.close", parts); err != nil {
		return err
	}
	t.FeeCloseToday, err = f.Fees.CloseToday.rate("fees.close_today", parts)
	return err
}

func (f *fileInstrument) prices(t *Instrument, _ decimal) error {
	limit, err := f.PriceLimit.rate("price_limit", 10_000)
	if err != nil {
		return err
	}
	if limit < 1 || limit > 1<<16-1 {
		return errors.New("price_limit: must be at least \"0.0001\" and at most \"6.5535\" of the reference price")
	}
	t.PriceLimitBP = uint16(limit)
	if t.MaxOrderVolume <= 0 {
		return errors.New("max_order_volume: must be above zero lots")
	}
	s, err := f.Reference.read("reference_price")
	if err != nil {
		return err
	}
	reference, err := t.ParsePrice(s)
	if err != nil {
		return fmt.Errorf("reference_price: %w", err)
	}
	if reference <= 0 {
		return errors.New("reference_price: must be above zero")
	}
	t.LowerLimit, t.UpperLimit = t.LimitsAround(reference)
	if want, ok := MulDiv(reference, 10_000+limit, 10_000, Down); !ok || t.UpperLimit != want {
		return errors.New("max_order_volume: the largest order at the upper price limit is worth more than 2^60 minor units; lower it or choose a larger minor_unit")
	}
	return nil
}

// FormatMoney writes an amount in minor units as a decimal of the currency.
func (s *Set) FormatMoney(minorUnits int64) string { return formatScaled(minorUnits, s.Decimals) }

// ParseMoney turns a decimal amount of the currency into minor units.
func (s *Set) ParseMoney(amount string) (int64, error) {
	d, err := parseDecimal(amount)
	if err != nil {
		return 0, fmt.Errorf("amount %w", err)
	}
	v, ok := d.scaled(s.Decimals)
	if !ok {
		return 0, fmt.Errorf("amount %s %s: %w with at most %d decimals", amount, s.Currency, ErrDecimal, s.Decimals)
	}
	return v, nil
}
