package orderflow

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

// lineBytesMax bounds one line of a recorded flow.
const lineBytesMax = 64 << 10

// Lines reads a recorded flow, gzipped or plain, line by line. Empty lines are
// passed over.
type Lines struct {
	scanner *bufio.Scanner
	line    int
}

// NewLines looks at the first bytes of r to see whether it is gzipped.
func NewLines(r io.Reader) (*Lines, error) {
	plain, err := inflate(r)
	if err != nil {
		return nil, err
	}
	l := &Lines{scanner: bufio.NewScanner(plain)}
	l.scanner.Buffer(make([]byte, 4096), lineBytesMax)
	return l, nil
}

func inflate(r io.Reader) (io.Reader, error) {
	b := bufio.NewReader(r)
	magic, err := b.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	return gzip.NewReader(b)
}

// Next returns the next line without its end, valid until the next call. It
// returns false at the end of the input and after an error, which Err returns.
func (l *Lines) Next() ([]byte, bool) {
	for l.scanner.Scan() {
		l.line++
		if line := l.scanner.Bytes(); len(line) > 0 {
			return line, true
		}
	}
	return nil, false
}

// Number returns the number of the line that Next returned last, from 1.
func (l *Lines) Number() int { return l.line }

// Err returns what stopped the reading, with the line, or nil at the end.
func (l *Lines) Err() error {
	if err := l.scanner.Err(); err != nil {
		return fmt.Errorf("line %d: %w", l.line+1, err)
	}
	return nil
}

// Fields splits a line at its commas into dst and reports whether it has exactly
// as many fields as dst.
func Fields(line []byte, dst [][]byte) bool {
	for i := range dst {
		field, rest, found := bytes.Cut(line, []byte(","))
		if found == (i == len(dst)-1) {
			return false
		}
		dst[i], line = field, rest
	}
	return true
}
