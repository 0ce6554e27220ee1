//go:build !race

package stablestore

// What bbolt makes of a damaged page ends a program that the race detector was built
// into, which checks pointers as well, and can not be recovered from. So these
// tests run without it: "make test" sees to that.

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// written returns a closed file that was written to several times.
func written(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "stable.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for term := uint64(1); term <= 5; term++ {
		err = errors.Join(err, s.SetUint64([]byte(keyTerm), term), persistVote(s, term, fmt.Sprint("10.0.0.", term, ":7000")))
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// Every flipped byte is found, or changes nothing that is believed.
func TestEveryFlippedByte(t *testing.T) {
	path := written(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	put := func(at int, b byte) {
		if _, err := f.WriteAt([]byte{b}, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	const pageBytes, usedBytes = 4096, 128
	found, harmless := 0, 0
	for at, b := range good {
		bits := []int{at % 8}
		if at%pageBytes < usedBytes {
			bits = []int{0, 1, 2, 3, 4, 5, 6, 7}
		}
		for _, bit := range bits {
			put(at, b^1<<bit)
			switch st, err := examine(path); {
			case errors.Is(err, ErrCorrupt):
				found++
			case err != nil || st.term != 5 || st.voteTerm != 5 || string(st.candidate) != "10.0.0.5:7000":
				t.Errorf("offset %d, bit %d: reads %+v, %v", at, bit, st, err)
			default:
				harmless++
			}
		}
		put(at, b)
	}
	t.Logf("%d bytes: %d flips found, %d harmless", len(good), found, harmless)
	if found == 0 || harmless == 0 {
		t.Error("out of proportion")
	}
}

// What bbolt does not find, because a pointer leads to an older page, is taken over.
func TestLatestStateIsAdopted(t *testing.T) {
	path := written(t)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	later := state{serial: 1000, term: 8, voteTerm: 8, candidate: []byte("c")}
	last := bytes.LastIndexByte(content, 0) - 200 // an unused end of a page
	copy(content[last:], later.encode())
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := readVote(t, s); got != "8 c" {
			t.Fatalf("the vote is %q", got)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTruncatedFile(t *testing.T) {
	path := written(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 0; size < len(good); size += 512 {
		if err := os.Truncate(path, int64(size)); err != nil {
			t.Fatal(err)
		}
		st, err := examine(path)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, ErrCorrupt) && (err != nil || st.term != 5) {
			t.Errorf("%d bytes: %+v, %v", size, st, err)
		}
	}
	if err := Check(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
