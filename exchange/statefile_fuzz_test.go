package exchange

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A state file, whatever it holds, is read or refused with its name; one that is
// read can be written and read again.
func FuzzStateFile(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"c","global":7,"hash":"ab","incarnation":3}`))
	f.Add([]byte(`{"format":2,"cluster":"c"}`))
	f.Add([]byte(`{`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		outbox := filepath.Join(dir, "outbox")
		if err := os.WriteFile(statePath(outbox), b, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(outbox, "c")
		if err != nil {
			if !strings.Contains(err.Error(), statePath(outbox)) {
				t.Fatalf("the error does not name the file: %v", err)
			}
			return
		}
		if err := s.store(); err != nil {
			t.Fatal(err)
		}
		again, err := loadState(outbox, "c")
		if err != nil || again.Global != s.Global || again.Hash != s.Hash || again.Incarnation != s.Incarnation {
			t.Fatalf("written and read again: %v, %+v, %+v", err, again, s)
		}
	})
}
