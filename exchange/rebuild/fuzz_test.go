package rebuild

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/countinghouse/countinghouse/exchange/core"
	"github.com/countinghouse/countinghouse/record"
)

// FuzzDamagedRecord: whatever a record says, the rebuild either takes it or
// refuses it with a documented error.
func FuzzDamagedRecord(f *testing.F) {
	flow := newFlow(&testing.T{}, 9)
	for range 600 {
		flow.step()
	}
	clean := flow.sink.Records()
	for i := range clean {
		if i%37 == 0 {
			f.Add(uint16(i), uint8(i), uint64(i))
			f.Add(uint16(i), uint8(6), ^uint64(0))
		}
	}
	f.Fuzz(func(t *testing.T, at uint16, word uint8, value uint64) {
		rs := slices.Clone(clean)
		r := &rs[int(at)%len(rs)]
		binary.LittleEndian.PutUint64(r.Bytes()[int(word)%(record.Size/8)*8:], value)
		_, err := Run(t.Context(), &Slice{Records: rs})
		if err == nil {
			return
		}
		for _, known := range []error{core.ErrReplay, ErrGap, ErrDoubled, ErrTorn, record.ErrCorrupt, record.ErrVersion} {
			if errors.Is(err, known) {
				return
			}
		}
		// A symbol of wrong characters is refused by the record's own check.
		if r.Instrument.Check() == nil {
			t.Fatalf("undocumented error %v for %s", err, r)
		}
	})
}
