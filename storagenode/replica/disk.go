package replica

import (
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/storagenode/wal"
)

// Free space must rise this much above the reserve, as a fraction of it, before
// appends are taken again; otherwise the node would flap.
const diskResumeFraction = 4

// diskWatch keeps a reserve of free disk space. Below it, and from the moment when
// a write does not fit until there is room again, appends are refused; reads,
// snapshots and the shortening of the log go on.
type diskWatch struct {
	fs      vfs.FS // not guarded: what is done here makes room for others
	dir     string
	reserve int64 // bytes; not positive: no check
	ballast int64 // bytes; not positive: none
	least   int64 // bytes that must be free after a write did not fit
	log     *slog.Logger

	full atomic.Bool
	met  atomic.Bool   // a write did not fit, and there has been no room since
	free atomic.Uint64 // bytes at the last check

	mu   sync.Mutex // held while the ballast file changes
	stop chan struct{}
	done sync.WaitGroup
}

// newDiskWatch returns a watch that has not looked yet; see check and start.
func newDiskWatch(c *Config) *diskWatch {
	segment := c.WAL.SegmentBytes
	if segment == 0 {
		segment = wal.DefaultSegmentBytes
	}
	return &diskWatch{
		fs: c.FS, dir: c.DataDir, reserve: c.DiskReserveBytes, ballast: c.BallastBytes,
		least: segment + max(c.BallastBytes, 0), log: c.Logger, stop: make(chan struct{}),
	}
}

// start checks from time to time. While appends are refused isFull is called, again
// and again, from a goroutine of its own.
func (d *diskWatch) start(interval time.Duration, isFull func()) {
	d.done.Go(func() { d.watch(interval, isFull) })
}

func (d *diskWatch) close() {
	close(d.stop)
	d.done.Wait()
}

func (d *diskWatch) watch(interval time.Duration, isFull func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var busy atomic.Bool
	for {
		if d.full.Load() && !busy.Swap(true) {
			d.done.Go(func() {
				defer busy.Store(false)
				isFull()
			})
		}
		select {
		case <-ticker.C:
			d.check()
		case <-d.stop:
			return
		}
	}
}

// usage returns how many bytes are free.
func (d *diskWatch) usage() (int64, error) {
	usage, err := d.fs.GetDiskUsage(d.dir)
	return int64(min(usage.AvailBytes, math.MaxInt64)), err
}

func (d *diskWatch) check() {
	free, err := d.usage()
	if err != nil {
		d.log.Warn("free disk space is unknown", "dir", d.dir, "error", err)
		d.full.Store(false) // the next write tells whether there is room
		return
	}
	d.free.Store(uint64(free))
	if d.reserve > 0 || d.full.Load() {
		d.judge(free)
	}
	d.trimBallast(free)
}

func (d *diskWatch) judge(free int64) {
	resume := max(d.reserve, 0) + max(d.reserve, 0)/diskResumeFraction
	if d.met.Load() {
		resume = max(resume, d.least)
	}
	full := free < d.reserve || d.full.Load() && free < resume
	if full == d.full.Swap(full) {
		return
	}
	d.met.CompareAndSwap(true, full)
	if full {
		d.log.Error("disk is full: appends are refused until there is room", "free_bytes", free, "reserve_bytes", d.reserve)
		return
	}
	d.log.Info("disk has room again: appends are taken", "free_bytes", free)
}

// trimBallast gives the ballast up when there is no space but its own, and lays
// it down again when there is plenty.
func (d *diskWatch) trimBallast(free int64) {
	if d.ballast <= 0 {
		return
	}
	switch {
	case free < d.ballast/2:
		d.dropBallast()
	case free > max(d.reserve, 0)+2*d.ballast:
		d.layBallast()
	}
}

// isFull implements roomMaker: appends are refused from here on.
func (d *diskWatch) isFull(err error) {
	d.met.Store(true)
	if !d.full.Swap(true) {
		d.log.Error("disk is full: appends are refused until there is room", "error", err)
	}
}

// makeRoom implements roomMaker: it gives the ballast up if the write fits then.
func (d *diskWatch) makeRoom(bytes int64) bool {
	if free, err := d.usage(); err == nil && free < bytes-max(d.ballast, 0) {
		return false
	}
	return d.dropBallast()
}

// dropBallast frees the ballast and reports whether there was any.
func (d *diskWatch) dropBallast() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fs.Remove(d.fs.PathJoin(d.dir, ballastFile)); err != nil {
		return false
	}
	d.log.Warn("disk is full: ballast given up", "bytes", d.ballast)
	return true
}

func (d *diskWatch) layBallast() {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := d.fs.PathJoin(d.dir, ballastFile)
	if info, err := d.fs.Stat(name); err == nil && info.Size() == d.ballast {
		return
	}
	if err := writeBallast(d.fs, name, d.ballast); err != nil {
		d.log.Warn("no ballast", "file", name, "error", err)
		_ = d.fs.Remove(name) // half a ballast is worse than none
	}
}
