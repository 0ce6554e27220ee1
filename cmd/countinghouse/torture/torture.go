package torture

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/localcluster/netfault"
	"github.com/countinghouse/countinghouse/record"
)

// Config says what a run consists of.
type Config struct {
	Seed        uint64
	Duration    time.Duration // of the faults; healing and checking come on top
	Dir         string        // data of the nodes; it must be empty
	Shards      int           // at least 1
	Replicas    int           // of each shard: 1, 3, 5 or 7
	Rate        int           // records a second that all writers together try to write
	NodeCommand []string      // program and first arguments of a storage node
	// Stop ends the faults early when it is closed; what was written by then is
	// checked all the same.
	Stop <-chan struct{}

	// Progress takes a line on how far the run is, Note one that stays. They are
	// called by one goroutine at a time.
	Progress, Note func(format string, args ...any)
}

const (
	clusterName          = "torture"
	eventFile            = "events.log"
	writersPerShard      = 2
	instrumentsPerWriter = 2
	progressEvery        = 500 * time.Millisecond
)

// nodeArgs make the nodes flush, take snapshots, shorten and recycle their logs
// every few seconds, and hold elections after half a second.
var nodeArgs = []string{
	"--heartbeat-timeout", "500ms", "--stop-grace", "2s",
	"--segment-bytes", "1064960", "--log-cache-bytes", "524288", "--memtable-bytes", "65536",
	"--snapshot-bytes", "1048576", "--snapshot-entries", "1024", "--trailing-entries", "64",
	"--in-flight-bytes", "8388608", "--ballast-bytes", "1048576",
}

// The streams of randomness that are drawn from the seed.
const (
	streamWriter = 1 << 32
	streamReader = 2 << 32
	streamFault  = 3 << 32
	streamSlot   = 4 << 32
)

// random returns one stream of randomness.
func (c *Config) random(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(c.Seed, stream)) }

// torture is a run in progress.
type torture struct {
	Config
	began   time.Time
	net     *netfault.Network
	cluster *localcluster.Cluster
	shards  []*shard
	found   *findings
	nodes   nodeClaims
	events  *log.Logger
	talking sync.Mutex // held while Note or Progress is called

	writers atomic.Uint64 // numbers given to writers
	members atomic.Uint64 // changes of any shard's members, for clients to look again
	counts  counters
	faults  faultCounts
	hosts   []string // from which writers and readers connect
	aborted <-chan struct{}
	result  Report
}

// shard is one Raft group under torture.
type shard struct {
	name      string
	ledgers   []*ledger
	outages   *outages
	replacing sync.Mutex    // held while its members change
	ids       atomic.Uint64 // members there have ever been
}

// counters are what the report counts.
type counters struct {
	sessions, takeovers, fenced, provoked  atomic.Uint64
	scans, gets, tails, stale, readRecords atomic.Uint64
	readsFailed, batches                   atomic.Uint64
}

// Run runs a torture. The report is valid even with an error, which says that
// the run could not be done; what the run found is in the report. When ctx ends,
// the run ends without checking what it has not checked yet.
func Run(ctx context.Context, c Config) (Report, error) {
	t := &torture{Config: c, began: time.Now(), net: netfault.New(c.Seed), aborted: ctx.Done()}
	t.found = newFindings(func(text string) {
		t.event("FINDING %s", text)
		t.note("FINDING (seed %d): %s", t.Seed, text)
	})
	defer t.net.Close()
	events, err := os.OpenFile(filepath.Join(c.Dir, eventFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return t.report(), fmt.Errorf("%s: %w: give an empty directory", c.Dir, err)
	}
	defer events.Close()
	t.events = log.New(events, "", log.Ltime|log.Lmicroseconds)
	t.event("seed %d, %d shards, %d replicas, %s", c.Seed, c.Shards, c.Replicas, c.Duration)
	if err := t.start(ctx); err != nil {
		return t.report(), err
	}
	defer t.cluster.Close()
	t.torment(ctx)
	if err = ctx.Err(); err == nil {
		err = t.prove(ctx)
	}
	return t.report(), err
}

func (t *torture) event(format string, args ...any) {
	if t.events != nil {
		t.events.Printf(format, args...)
	}
}

func (t *torture) note(format string, args ...any) {
	t.talking.Lock()
	defer t.talking.Unlock()
	t.Note(format, args...)
}

func (t *torture) progress(format string, args ...any) {
	t.talking.Lock()
	defer t.talking.Unlock()
	t.Progress(format, args...)
}

// start starts the cluster behind proxies and waits until it can be written to.
func (t *torture) start(ctx context.Context) error {
	t.progress("starting %d shards of %d storage nodes", t.Shards, t.Replicas)
	var layout []localcluster.Shard
	for i := range t.Shards {
		s := &shard{name: fmt.Sprintf("s%d", i+1), outages: newOutages(time.Now)}
		s.ids.Store(uint64(t.Replicas))
		l := localcluster.Shard{Name: s.name, Replicas: t.Replicas}
		for j := range writersPerShard * instrumentsPerWriter {
			name := fmt.Sprintf("%s-%c", s.name, 'A'+j)
			l.Instruments = append(l.Instruments, name)
			sym, err := record.MakeSymbol(name)
			if err != nil {
				return err
			}
			s.ledgers = append(s.ledgers, newLedger(sym, t.found))
		}
		t.shards, layout = append(t.shards, s), append(layout, l)
	}
	var err error
	t.cluster, err = localcluster.Start(ctx, localcluster.Options{
		Cluster: clusterName, Dir: t.Dir, Command: t.NodeCommand, Args: nodeArgs, Shards: layout, Front: t.front,
	})
	if err != nil {
		return err
	}
	if err := t.cluster.AwaitLeaders(ctx); err != nil {
		t.cluster.Close()
		return err
	}
	if _, err := t.cluster.WriteMap(); err != nil {
		t.cluster.Close()
		return err
	}
	return nil
}

// front puts a proxy in front of a node and gives it an address to dial from.
func (t *torture) front(id, listen string) (string, []string, error) {
	from, err := t.net.Address(id)
	if err != nil {
		return "", nil, err
	}
	address, err := t.net.Serve(id, listen)
	return address, []string{"--dial-from", from.String()}, err
}

// torment lets writers and readers work under faults, then without, and returns
// when they have ended and all nodes run.
func (t *torture) torment(ctx context.Context) {
	working, finish := context.WithCancel(ctx)
	var workers sync.WaitGroup
	var slots []*slot
	for i, s := range t.shards {
		for j := range writersPerShard {
			slots = append(slots, t.newSlot(s, i*writersPerShard+j, s.ledgers[j*instrumentsPerWriter:(j+1)*instrumentsPerWriter]))
		}
		t.startReaders(working, &workers, s, i)
	}
	faulty, heal := context.WithTimeout(ctx, t.Duration)
	for _, s := range slots {
		workers.Go(func() { s.run(working, faulty.Done()) })
	}
	workers.Go(func() { t.showProgress(working) })
	go func() {
		select {
		case <-t.Stop:
			heal()
		case <-faulty.Done():
		}
	}()
	t.injectFaults(faulty)
	heal()
	t.event("all faults are healed")
	t.awaitResumption(ctx, slots)
	finish()
	workers.Wait()
}

func (t *torture) showProgress(ctx context.Context) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		acked := uint64(0)
		for _, s := range t.shards {
			for _, l := range s.ledgers {
				acked += l.acknowledgedRecords()
			}
		}
		t.progress("%5.1f s  %d records acknowledged  %d sessions  %d read  %d faults  now: %s",
			time.Since(t.began).Seconds(), acked, t.counts.sessions.Load(), t.counts.readRecords.Load(), t.faults.total(), t.faults.now())
	}
}

// pause waits for d, or until ctx ends, and reports whether it did not.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
