package codec

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unsafe"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// reader reads protobuf's wire format from the pieces that a message came in. After
// the first error it reads zeroes, and nothing is left.
type reader struct {
	rest mem.BufferSlice // behind cur
	cur  []byte
	left int // bytes, those of cur included
	err  error
}

func newReader(data mem.BufferSlice) reader { return reader{rest: data, left: data.Len()} }

// result returns the first error, or nil.
func (r *reader) result(what string) error {
	if r.err != nil {
		return fmt.Errorf("%s message: %w", what, r.err)
	}
	return nil
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest, r.cur, r.left = nil, nil, 0
}

// more makes sure that cur is not empty. REQUIRES: left > 0.
func (r *reader) more() {
	for len(r.cur) == 0 {
		r.cur = r.rest[0].ReadOnlyData()
		r.rest = r.rest[1:]
	}
}

func (r *reader) advance(n int) {
	r.cur = r.cur[n:]
	r.left -= n
}

func (r *reader) varint() uint64 {
	if len(r.cur) >= binary.MaxVarintLen64 {
		v, n := protowire.ConsumeVarint(r.cur)
		if n < 0 {
			r.fail(protowire.ParseError(n))
			return 0
		}
		r.advance(n)
		return v
	}
	return r.splitVarint()
}

// splitVarint reads a number that may lie in several pieces.
func (r *reader) splitVarint() uint64 {
	var b [binary.MaxVarintLen64]byte
	for n := range b {
		if r.left == 0 {
			r.fail(io.ErrUnexpectedEOF)
			return 0
		}
		r.more()
		b[n] = r.cur[0]
		r.advance(1)
		if b[n] < 0x80 {
			v, used := protowire.ConsumeVarint(b[:n+1])
			if used < 0 {
				r.fail(protowire.ParseError(used))
			}
			return v
		}
	}
	r.fail(protowire.ParseError(-2)) // more than 64 bits
	return 0
}

func (r *reader) tag() (protowire.Number, protowire.Type) {
	num, typ := protowire.DecodeTag(r.varint())
	if num < protowire.MinValidNumber {
		r.fail(fmt.Errorf("field number %d", num))
	}
	return num, typ
}

// length reads the length of a field that is there as a whole.
func (r *reader) length() int {
	n := r.varint()
	if n > uint64(r.left) {
		r.fail(io.ErrUnexpectedEOF)
		return 0
	}
	return int(n)
}

// bytes returns a field's bytes in memory of their own.
func (r *reader) bytes() []byte {
	n := r.length()
	if n == 0 {
		return []byte{}
	}
	if n < alignment {
		b := make([]byte, 0, alignment) // the allocator packs smaller ones
		r.copyTo(func(part []byte) { b = append(b, part...) }, n)
		return b[:n:n]
	}
	// A Builder's memory is not cleared before it is written, which would take as
	// long as the copy. Nobody else has the string.
	var b strings.Builder
	b.Grow(n)
	r.copyTo(func(part []byte) { b.Write(part) }, n)
	return unsafe.Slice(unsafe.StringData(b.String()), n)
}

// copyTo hands the next n bytes out piece by piece. REQUIRES: n <= left.
func (r *reader) copyTo(to func([]byte), n int) {
	for n > 0 {
		r.more()
		part := r.cur[:min(n, len(r.cur))]
		to(part)
		r.advance(len(part))
		n -= len(part)
	}
}

// discard drops the next n bytes.
func (r *reader) discard(n int) { r.copyTo(func([]byte) {}, n) }

// skip passes over a field of no interest. Groups, which no message here ever had,
// are refused.
func (r *reader) skip(typ protowire.Type) {
	var n int
	switch typ {
	case protowire.VarintType:
		r.varint()
		return
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	case protowire.BytesType:
		n = r.length()
	default:
		r.fail(fmt.Errorf("field of wire type %d", typ))
		return
	}
	if n > r.left {
		r.fail(io.ErrUnexpectedEOF)
		return
	}
	r.discard(n)
}
