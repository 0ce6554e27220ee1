package outbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrOptions means that Options cannot be used; the error names the field.
// Nothing was created or changed.
var ErrOptions = errors.New("outbox options")

// AheadMin is the least that Options.AheadSegments is by default, and what Open waits
// for; AheadMax is the most that it may be.
const (
	AheadMin = 2
	AheadMax = 64
)

// Options configure a Writer. The zero value of a field means its default.
type Options struct {
	// Cluster names the exchange that the outbox belongs to, up to 64 bytes.
	// Required; an outbox of another cluster is refused with ErrWrongCluster.
	Cluster string
	// SegmentRecords is the capacity of one segment file, a multiple of 32.
	// Default 65536 (8.5 MiB). It is fixed when the outbox is created.
	SegmentRecords int
	// QuotaBytes bounds the segment files together; at least AheadSegments+2
	// of them must fit. Default 1 GiB, about 7.6 million records.
	QuotaBytes int64
	// HeadroomRecords is kept free by Reserve for ReserveUrgent. Default 4096,
	// or half a segment if that is less; negative for none.
	// Reserve can grant at most SegmentRecords × AheadSegments less this at once.
	HeadroomRecords int
	// AheadSegments is how many prefaulted segments lie ready behind the one
	// being written, from 1 to AheadMax: how far the writer gets while the file
	// system is late with the next ones. They count as part of the quota, all of which can
	// be written all the same. Default: a quarter of the quota, but at least
	// AheadMin and at most AheadMax.
	AheadSegments int
	// StartGlobal is the lowest value that Published may have after Open: the
	// highest global that the stores are known to hold. A fresh outbox, one
	// that replaces a lost one, goes on from there.
	StartGlobal uint64
	// Cursors are created before the oldest record kept when they do not
	// exist, so that nothing is recycled before their readers first come.
	Cursors []string
	// BootID identifies the run of the machine's kernel; another one than at
	// the last Open means that the machine went down in between. Default: what
	// the kernel says.
	BootID string
	// BootChanged, if set, is called when the machine went down since the last
	// Open, before Open writes down that it knows: whoever must act on that can
	// make a note that outlives this process. An error of it ends Open.
	BootChanged func() error
}

func (o *Options) complete() error {
	if o.Cluster == "" || len(o.Cluster) > clusterBytes {
		return fmt.Errorf("%w: Cluster: %q: use 1 to %d bytes", ErrOptions, o.Cluster, clusterBytes)
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 1 << 30
	}
	if o.AheadSegments < 0 || o.AheadSegments > AheadMax {
		return fmt.Errorf("%w: AheadSegments: %d: use 1 to %d", ErrOptions, o.AheadSegments, AheadMax)
	}
	for _, name := range o.Cursors {
		if err := checkCursorName(name); err != nil {
			return fmt.Errorf("%w: Cursors: %w", ErrOptions, err)
		}
	}
	if o.BootID != "" {
		return nil
	}
	var err error
	o.BootID, err = bootID()
	return err
}

// checkFresh reports options with which no outbox can be created in dir, where
// there is none yet.
func (o Options) checkFresh(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, controlName)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return o.fit(0)
}

// fit completes what depends on the segment size, which an existing outbox has
// fixed already (0 for a fresh one).
func (o *Options) fit(existing uint64) error {
	if o.SegmentRecords == 0 {
		o.SegmentRecords = 65536
		if existing != 0 {
			o.SegmentRecords = int(existing)
		}
	}
	if o.SegmentRecords < 0 {
		return fmt.Errorf("%w: SegmentRecords: %d is negative", ErrOptions, o.SegmentRecords)
	}
	if err := checkSegmentRecords(uint64(o.SegmentRecords)); err != nil {
		return fmt.Errorf("%w: SegmentRecords: %w", ErrOptions, err)
	}
	if existing != 0 && uint64(o.SegmentRecords) != existing {
		return fmt.Errorf("%w: SegmentRecords: %d, but the outbox was created with %d; leave it unset or use that", ErrOptions, o.SegmentRecords, existing)
	}
	if o.AheadSegments == 0 {
		o.AheadSegments = min(max(AheadMin, o.quotaSegments()/4), AheadMax)
	}
	if least := int64(o.AheadSegments+2) * o.segmentBytes(); o.QuotaBytes < least {
		return fmt.Errorf("%w: QuotaBytes: %d, but %d segments of %d bytes must fit: use at least %d", ErrOptions,
			o.QuotaBytes, o.AheadSegments+2, o.segmentBytes(), least)
	}
	if o.HeadroomRecords == 0 {
		o.HeadroomRecords = min(4096, o.SegmentRecords/2)
	}
	if o.HeadroomRecords > o.SegmentRecords*o.AheadSegments/2 {
		return fmt.Errorf("%w: HeadroomRecords: %d is more than half of the %d records kept ready ahead", ErrOptions, o.HeadroomRecords, o.SegmentRecords*o.AheadSegments)
	}
	return nil
}

func (o *Options) segmentBytes() int64 { return segmentBytes(uint64(o.SegmentRecords)) }

func (o *Options) quotaSegments() int { return int(o.QuotaBytes / o.segmentBytes()) }
