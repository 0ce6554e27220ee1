package torture

import (
	"fmt"
	"sync"
)

const findingsMax = 50

// kind says which promise a finding breaks.
type kind int

const (
	lost       kind = iota // acknowledged or read, and then absent or different
	duplicated             // the same record at two places
	reordered              // a record at a wrong place
	broken                 // anything else that must not be
	kinds
)

// findings collects what was found. It is safe for concurrent use.
type findings struct {
	mu     sync.Mutex
	counts [kinds]uint64
	texts  []string // at most findingsMax
	times  map[string]int
	more   int // not among texts
	tell   func(text string)
}

func newFindings(tell func(string)) *findings {
	return &findings{times: make(map[string]int), tell: tell}
}

// add notes n breaches of a kind, with one text.
func (f *findings) add(k kind, n uint64, format string, args ...any) {
	if n == 0 {
		return
	}
	text := fmt.Sprintf(format, args...)
	f.mu.Lock()
	f.counts[k] += n
	kept := f.times[text] == 0 && len(f.texts) < findingsMax
	switch {
	case kept:
		f.texts = append(f.texts, text)
		f.times[text] = 1
	case f.times[text] > 0:
		f.times[text]++
	default:
		f.more++
	}
	f.mu.Unlock()
	if kept {
		f.tell(text)
	}
}

// any reports whether there are findings.
func (f *findings) any() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.texts) > 0
}

func (f *findings) count(k kind) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[k]
}

// list returns the texts.
func (f *findings) list() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]string, 0, len(f.texts)+1)
	for _, text := range f.texts {
		if n := f.times[text]; n > 1 {
			text = fmt.Sprintf("%s (%d times)", text, n)
		}
		out = append(out, text)
	}
	if f.more > 0 {
		out = append(out, fmt.Sprintf("and %d findings more", f.more))
	}
	return out
}
