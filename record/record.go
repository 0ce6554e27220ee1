package record

import (
	"errors"
	"fmt"
	"unsafe"
)

const (
	// Size is the number of bytes of one record.
	Size = 128
	// HeaderSize is the number of bytes that all record types share.
	HeaderSize = 48
	// BodySize is the number of bytes that differ by type.
	BodySize = Size - HeaderSize
	// Version is the record version that this package writes and reads.
	Version = 1
)

// AccountStream is the reserved instrument whose stream holds account changes
// that concern no instrument: opening, deposits and withdrawals.
const AccountStream = "__ACCOUNT__"

// Type tells how the body of a record is laid out. Zero is never written, so
// that zero-filled space is not taken for a record.
type Type uint8

// The record types. Their numbers are part of the format.
const (
	TypeOrderInsert      Type = 1
	TypeOrderCancel      Type = 2
	TypeOrderAmend       Type = 3
	TypeTradeExecuted    Type = 4
	TypeAccountUpdate    Type = 5
	TypeAccountOpened    Type = 6
	TypeDeposit          Type = 7
	TypeWithdraw         Type = 8
	TypeInstrumentListed Type = 9
	TypeTradingState     Type = 10
	TypeSettlement       Type = 11
	TypeHistoryCut       Type = 12

	typeLimit = 13
)

var typeNames = [typeLimit]string{
	TypeOrderInsert:      "OrderInsert",
	TypeOrderCancel:      "OrderCancel",
	TypeOrderAmend:       "OrderAmend",
	TypeTradeExecuted:    "TradeExecuted",
	TypeAccountUpdate:    "AccountUpdate",
	TypeAccountOpened:    "AccountOpened",
	TypeDeposit:          "Deposit",
	TypeWithdraw:         "Withdraw",
	TypeInstrumentListed: "InstrumentListed",
	TypeTradingState:     "TradingState",
	TypeSettlement:       "Settlement",
	TypeHistoryCut:       "HistoryCut",
}

// Known reports whether t is a type of this version.
func (t Type) Known() bool { return t > 0 && t < typeLimit }

// String returns the type's name, or "Type(n)" for an unknown one.
func (t Type) String() string {
	if t.Known() {
		return typeNames[t]
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// ParseType returns the type with the given name.
func ParseType(name string) (Type, error) {
	for t := Type(1); t < typeLimit; t++ {
		if typeNames[t] == name {
			return t, nil
		}
	}
	return 0, fmt.Errorf("record: unknown record type %q; known types are %v", name, typeNames[1:])
}

// Flags are the bits of a record's flags field.
type Flags uint16

// FlagLast marks the last record of a transaction: the records that one command
// to the exchange produced, which are published together or not at all.
const FlagLast Flags = 1 << 0

const knownFlags = FlagLast

// Header is what all records share.
type Header struct {
	Version    uint8
	Type       Type
	Flags      Flags
	_          uint32
	Seq        uint64 // in the instrument's stream, from 1, without gaps
	Global     uint64 // over all streams of an exchange, from 1; without gaps but where a HistoryCut says so
	Time       int64  // Unix nanoseconds
	Instrument Symbol
}

// Record is one persisted notification. The body is read through the method
// named after the record's type; calling another one reads nonsense.
type Record struct {
	Header
	Body [BodySize]byte
}

// Errors that Check and batch parsing wrap; test with errors.Is.
var (
	// ErrVersion means that the record or batch has a version that this
	// build does not know; a newer build may.
	ErrVersion = errors.New("unknown version")
	// ErrCorrupt means that the bytes are not what was written.
	ErrCorrupt = errors.New("corrupt")
)

// Check reports whether r is a record of a known version and type with a usable
// header. It does not look at the body.
func (r *Record) Check() error {
	if err := r.checkHeader(); err != nil {
		return err
	}
	return r.Instrument.Check()
}

// checkHeader is Check without the instrument.
func (r *Record) checkHeader() error {
	switch {
	case r.Version != Version:
		return fmt.Errorf("record seq %d: %w %d (this build reads version %d)", r.Seq, ErrVersion, r.Version, Version)
	case !r.Type.Known():
		return fmt.Errorf("record seq %d: %w: record type %d", r.Seq, ErrVersion, uint8(r.Type))
	case r.Flags&^knownFlags != 0:
		return fmt.Errorf("record seq %d: %w: flags %#x", r.Seq, ErrVersion, uint16(r.Flags))
	case r.Seq == 0 || r.Global == 0:
		return fmt.Errorf("record seq %d, global %d: %w: sequence numbers start at 1", r.Seq, r.Global, ErrCorrupt)
	}
	return nil
}

// Begin sets version and type, and clears the flags. It is one store of the whole
// word: who reads that word at once, as a check sum does, needs not wait until
// stores of its parts have reached the cache.
func (h *Header) Begin(t Type) { *h.first() = Version | uint64(t)<<8 }

// SetLast sets FlagLast, like Begin with one store of the whole word.
func (h *Header) SetLast() { *h.first() |= uint64(FlagLast) << 16 }

// first returns the header's first word: version, type, flags, and a part that is
// not used.
func (h *Header) first() *uint64 { return (*uint64)(unsafe.Pointer(h)) }

// Bytes returns the record's 128 bytes without copying them.
func (r *Record) Bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(r)), Size)
}

// SliceBytes returns the bytes of rs without copying them.
func SliceBytes(rs []Record) []byte {
	if len(rs) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&rs[0])), len(rs)*Size)
}

// View returns the records that b holds, without copying them where b is
// aligned for them. The length of b must be a multiple of Size. View checks
// neither versions nor checksums.
func View(b []byte) ([]Record, error) {
	if len(b)%Size != 0 {
		return nil, fmt.Errorf("record: %w: %d bytes are not a whole number of %d-byte records", ErrCorrupt, len(b), Size)
	}
	if len(b) == 0 {
		return nil, nil
	}
	p := unsafe.Pointer(&b[0])
	if uintptr(p)%unsafe.Alignof(Record{}) != 0 {
		rs := make([]Record, len(b)/Size)
		copy(SliceBytes(rs), b)
		return rs, nil
	}
	return unsafe.Slice((*Record)(p), len(b)/Size), nil
}
