package outbox

import (
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/countinghouse/countinghouse/record"
)

// Odd constants that give each pair of a record's words a weight of its own.
const (
	weight0 = 0x9e3779b97f4a7c15
	weight1 = 0xbf58476d1ce4e5b9
	weight2 = 0x94d049bb133111eb
	weight3 = 0xd6e8feb86659fd93
	weight4 = 0xa0761d6478bd642f
	weight5 = 0xe7037ed1a0b428db
	weight6 = 0x8ebc6af09c88c6e3
	weight7 = 0x589965cc75374cc3
)

// checkSalt makes the check word of a zero record differ from zero.
const checkSalt = 0x6f7574626f780001

// checkWord tells a whole record from one that reached the disk in part when
// the machine went down. Its multiplications do not wait for each other, which
// makes it several times cheaper than a CRC of 128 bytes; against malice or
// rotting bits the batch's CRC32C is there.
func checkWord(r *record.Record) uint64 {
	w := (*[16]uint64)(unsafe.Pointer(r))
	a := pair(w[0], w[8])*weight0 + pair(w[1], w[9])*weight1
	b := pair(w[2], w[10])*weight2 + pair(w[3], w[11])*weight3
	c := pair(w[4], w[12])*weight4 + pair(w[5], w[13])*weight5
	d := pair(w[6], w[14])*weight6 + pair(w[7], w[15])*weight7
	return (a + b) + (c + d) + checkSalt
}

func pair(v, w uint64) uint64 { return v ^ bits.RotateLeft64(w, 29) }

// Void reports whether r is a placeholder: recovery leaves one for each global
// that was used before a machine went down but whose record is lost here. A
// void has a global number and FlagLast, and is otherwise zero. Readers skip it.
func Void(r *record.Record) bool { return r.Type == 0 }

// checkSlot reports whether slot i of s holds the whole record of global g, with
// values that a record can have.
func (s *segment) checkSlot(i, g uint64) error {
	if err := s.checkWhole(i, g); err != nil {
		return err
	}
	if Void(&s.slots[i]) {
		return nil
	}
	if err := s.slots[i].Check(); err != nil {
		return fmt.Errorf("%w: offset %d: the record of global %d: %w", ErrDamaged, slotOffset(i), g, err)
	}
	return nil
}

// checkWhole reports whether slot i of s holds, word for word, what was sealed
// there as the record of global g.
func (s *segment) checkWhole(i, g uint64) error {
	r := &s.slots[i]
	if r.Global != g {
		return fmt.Errorf("%w: offset %d: the slot of global %d holds global %d", ErrDamaged, slotOffset(i), g, r.Global)
	}
	if s.checks[i] != checkWord(r) {
		return fmt.Errorf("%w: offset %d: the record of global %d is not whole: its check word at offset %d differs",
			ErrDamaged, slotOffset(i), g, segmentHeader+len(s.slots)*record.Size+int(i)*checkBytes)
	}
	return nil
}

// slotOffset returns where slot i lies in its file.
func slotOffset(i uint64) int64 { return segmentHeader + int64(i)*record.Size }
