package record

import (
	"bytes"
	"fmt"
	"strings"
)

// SymbolSize is the number of bytes of an instrument's name.
const SymbolSize = 16

// Symbol is an instrument's name: 1 to 16 ASCII letters, digits, '.', '-', '_'
// or '/', padded with zero bytes. Two symbols are equal when == says so.
type Symbol [SymbolSize]byte

// MakeSymbol returns the symbol for name, or an error that says which rule of
// Symbol name breaks.
func MakeSymbol(name string) (Symbol, error) {
	var s Symbol
	if name == "" || len(name) > SymbolSize {
		return s, fmt.Errorf("instrument %q: a name has 1 to %d characters", name, SymbolSize)
	}
	if strings.IndexByte(name, 0) >= 0 { // at the end it would pass for padding
		return s, fmt.Errorf("instrument %q: use letters, digits, '.', '-', '_' and '/' only", name)
	}
	copy(s[:], name)
	return s, s.Check()
}

// MustSymbol is MakeSymbol for names known at compile time; it panics on error.
func MustSymbol(name string) Symbol {
	s, err := MakeSymbol(name)
	if err != nil {
		panic(err) //nolint:forbidigo // the caller's constant is wrong
	}
	return s
}

// String returns the name without its padding.
func (s Symbol) String() string {
	if i := bytes.IndexByte(s[:], 0); i >= 0 {
		return string(s[:i])
	}
	return string(s[:])
}

// Check reports whether s is a valid symbol.
func (s Symbol) Check() error {
	n := len(s)
	for n > 0 && s[n-1] == 0 {
		n--
	}
	if n == 0 {
		return fmt.Errorf("instrument: %w: empty name", ErrCorrupt)
	}
	for _, c := range s[:n] {
		if !symbolByte(c) {
			return fmt.Errorf("instrument %q: use letters, digits, '.', '-', '_' and '/' only", s.String())
		}
	}
	return nil
}

func symbolByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '.' || c == '-' || c == '_' || c == '/'
}
