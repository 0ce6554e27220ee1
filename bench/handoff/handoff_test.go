package handoff

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/bench/measure"
)

func TestMain(m *testing.M) {
	if was, err := ReadElsewhere(); was {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSuite(t *testing.T) {
	b := &measure.Bench{Runs: 1, Root: t.TempDir(), Progress: io.Discard}
	s := sizes{publish: 100_001, stopped: 100_001, latency: 500, sustained: 50_050}
	if err := runSized(t.Context(), b, s); err != nil {
		t.Fatal(err)
	}
	r := b.Report(Suite(), measure.Machine{}, time.Now())
	if len(r.Points) != 3*(4+3+3)+5+4 {
		t.Errorf("%d points", len(r.Points))
	}
	for _, p := range r.Points {
		if p.Value <= 0 {
			t.Errorf("%s: %s: %v", p.Case, p.System, p.Value)
		}
		if p.Unit == "ns" && p.Latency.Samples != int64(s.latency) {
			t.Errorf("%s: %s: %d of %d records seen", p.Case, p.System, p.Latency.Samples, s.latency)
		}
	}
}

// A way loses nothing that publish took, and refuses when it is full.
func TestWays(t *testing.T) {
	for name, open := range map[string]opener{"outbox": openOutbox, "channel": openChannel, "SPSC": openSPSC, "MPMC": openMPMC} {
		w, err := open(t.TempDir(), 1)
		if err != nil {
			t.Fatal(err)
		}
		p := publication{records: 3 * window, producers: 1, mode: stopped}
		o := p.measure(w)
		read := 0
		for n := w.read(1000); n > 0; n = w.read(1000) {
			read += n
		}
		if got := int64(read) + o.lost; got != int64(p.records) {
			t.Errorf("%s: %d read and %d lost of %d", name, read, o.lost, p.records)
		}
		if name != "outbox" && o.lost < window {
			t.Errorf("%s: only %d lost", name, o.lost)
		}
		if err := w.close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOfferedAgainUntilTaken(t *testing.T) {
	for _, producers := range []int{1, 3} {
		w, err := openMPMC("", producers)
		if err != nil {
			t.Fatal(err)
		}
		o := publication{records: 2*window + 1, producers: producers, mode: keepingUp}.measure(w)
		if o.lost != 0 || o.elapsed <= 0 || w.read(1) != 0 {
			t.Errorf("%d producers: %+v", producers, o)
		}
	}
}

func TestClocksOfTheProcessesAgree(t *testing.T) {
	a, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	before := a.now()
	between := b.now()
	after := a.now()
	if between < before-1000 || between > after+1000 {
		t.Errorf("%d, %d, %d", before, between, after)
	}
}
