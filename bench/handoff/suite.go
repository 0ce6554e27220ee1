package handoff

import (
	"context"
	"fmt"

	"github.com/countinghouse/countinghouse/bench/measure"
)

// Suite returns what compares the outbox with channels, queues, sockets and pipes.
func Suite() measure.Suite {
	return measure.Suite{
		Name:  "handoff",
		About: "one 128-byte notification off the trading path: cost to the publisher, and time until another process sees it",
		Run:   run,
	}
}

// sizes are the numbers of records of one run.
type sizes struct {
	publish   int // in this process
	stopped   int // to a reader that is stopped
	latency   int // to another process, at a pace
	sustained int // to another process, as fast as it goes
}

func run(ctx context.Context, b *measure.Bench) error {
	s := sizes{publish: 6_000_000, stopped: 2_000_000, latency: 50_000, sustained: 5_000_000}
	if b.Quick {
		s = sizes{publish: 3_000_000, stopped: 1_000_000, latency: 25_000, sustained: 4_000_000}
	}
	return runSized(ctx, b, s)
}

func runSized(ctx context.Context, b *measure.Bench, s sizes) error {
	for _, mode := range []readerMode{idle, keepingUp, stopped} {
		for _, producers := range []int{1, 2, 4} {
			if b.Quick && producers > 1 && (mode != keepingUp || producers == 2) {
				continue
			}
			if err := comparePublish(ctx, b, s, mode, producers); err != nil {
				return err
			}
		}
	}
	return compareProcesses(ctx, b, s)
}

func comparePublish(ctx context.Context, b *measure.Bench, s sizes, mode readerMode, producers int) error {
	n := s.publish
	if mode == stopped {
		n = s.stopped
	}
	p := publication{records: n, producers: producers, mode: mode}
	c := measure.Case{Name: fmt.Sprintf("publish, %d producers, reader %s", producers, mode), Unit: "ns/record", LowerIsBetter: true}
	if producers == 1 {
		c.Name = fmt.Sprintf("publish, 1 producer, reader %s", mode)
	}
	return b.Compare(ctx, c, contestants(b, p)...)
}

func contestants(b *measure.Bench, p publication) []measure.Contestant {
	entry := "a lock, as in the router"
	if p.producers == 1 {
		entry = "no lock"
	}
	all := []measure.Contestant{
		{System: "outbox", Ours: true, Note: "in mapped files, survives the process; " + entry, Run: p.run(b, openOutbox)},
		{System: "channel", Note: "send that does not wait", Run: p.run(b, openChannel)},
	}
	if p.producers == 1 {
		floor := p
		floor.mode = idle // there is nothing to read
		return append(all,
			measure.Contestant{System: "xsync.SPSCQueue", Run: p.run(b, openSPSC)},
			measure.Contestant{System: "copy to mapped memory (floor)", Note: "nobody is told", Run: floor.run(b, openCopy)},
		)
	}
	return append(all, measure.Contestant{System: "xsync.MPMCQueue", Run: p.run(b, openMPMC)})
}
