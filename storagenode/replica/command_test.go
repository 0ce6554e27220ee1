package replica

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
)

// Whatever stands in a log entry, it is a command that reads back the same, or
// an error that says whether it is damaged or of a newer version.
func FuzzCommand(f *testing.F) {
	sym := record.MustSymbol("IF2501")
	for _, l := range []raft.Log{openCommand(sym, 7), ownedCommand([]record.Symbol{sym, record.MustSymbol(record.AccountStream)})} {
		f.Add(l.Extensions, l.Data)
	}
	f.Add([]byte{9, 1}, []byte(nil))
	f.Fuzz(func(t *testing.T, extensions, data []byte) {
		l := raft.Log{Index: 1, Extensions: extensions, Data: data}
		kind, err := kindOf(&l)
		if err != nil {
			if !errors.Is(err, record.ErrCorrupt) && !errors.Is(err, record.ErrVersion) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		switch kind {
		case commandOpenStream:
			if sym, epoch, err := parseOpen(&l); err == nil {
				sameData(t, data, openCommand(sym, epoch))
			}
		case commandSetOwned:
			if owned, err := parseOwned(&l); err == nil {
				sameData(t, data, ownedCommand(owned))
			}
		}
	})
}

func sameData(t *testing.T, data []byte, again raft.Log) {
	t.Helper()
	if string(again.Data) != string(data) {
		t.Fatalf("%x reads back as %x", data, again.Data)
	}
}
