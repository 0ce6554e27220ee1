package wal

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// loadPieceBytes is how much of a segment is read at once while the survey looks at
// what has been read before.
const loadPieceBytes = 1 << 20

// load is the front of a file on its way into memory: one goroutine reads it, another
// looks at what is there already.
type load struct {
	buf  []byte     // its first have bytes are read; the reader writes behind them
	have int64      // of the one who looks
	far  chan int64 // how far the reader has come; closed when it ends, and then err is set
	err  error
}

// startLoad begins to read f into buf. Only finish makes sure that f and buf are free
// again.
func startLoad(f vfs.File, path string, buf []byte) *load {
	l := &load{buf: buf, far: make(chan int64, len(buf)/loadPieceBytes+1)}
	go func() {
		defer close(l.far)
		for at := 0; at < len(buf); {
			n := min(loadPieceBytes, len(buf)-at)
			if _, err := f.ReadAt(buf[at:at+n], int64(at)); err != nil {
				l.err = fmt.Errorf("wal: read %s: %w", path, err)
				return
			}
			at += n
			l.far <- int64(at)
		}
	}()
	return l
}

// loaded is a load that is complete.
func loaded(buf []byte) *load {
	l := &load{buf: buf, have: int64(len(buf)), far: make(chan int64)}
	close(l.far)
	return l
}

// upTo waits until the first n bytes are there. It reports false if they will never
// be.
func (l *load) upTo(n int64) bool {
	for l.have < n {
		have, more := <-l.far
		if !more {
			return false
		}
		l.have = have
	}
	return true
}

// finish waits for the reader's end and returns its error.
func (l *load) finish() error {
	for l.have = range l.far {
	}
	return l.err
}
