package store

import (
	"context"
	"errors"
	"iter"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/countinghouse/countinghouse/record"
)

var errUnfinished = errors.New("store: not there yet")

// Shard holds the instruments of one shard.
type Shard struct{}

// Open opens the shard in dir, or creates an empty one. It locks the directory
// against other processes, drops files that no manifest names, and fails with an
// error that wraps ErrCorrupt if what the manifests promise is not there. After
// it the caller replays its log from DurableIndex()+1.
func Open(fs vfs.FS, dir string, opts Options) (*Shard, error) { return nil, errUnfinished }

// Close ends the background work and unlocks the directory. It flushes nothing:
// the log has what the memtables hold; call Flush before for a quick restart.
// No other method may run during or after it, except a Snapshot's.
func (s *Shard) Close() error { return nil }

// SetOwned makes the shard own exactly the given instruments and returns once
// that is durable. It is refused with CODE_INVALID if an instrument that holds
// records would be taken off the list. index is the Raft index of the entry; a
// replayed entry that is covered already changes nothing. FSM goroutine only.
func (s *Shard) SetOwned(index uint64, instruments []record.Symbol) error { return nil }

// OpenResult is what OpenStream found.
type OpenResult struct {
	Epoch      uint64
	LastSeq    uint64
	LastRecord *record.Record // the record at LastSeq; nil when LastSeq is 0
}

// OpenStream raises the instrument's epoch, which fences every writer with a
// lower one. Refusals: CODE_NOT_OWNER, and CODE_FENCED unless epoch is above the
// current one. FSM goroutine only.
func (s *Shard) OpenStream(index uint64, sym record.Symbol, epoch uint64) (OpenResult, error) {
	return OpenResult{}, nil
}

// Append adds a batch, whose bytes the shard keeps and the caller must never
// change, and returns the instrument's last seq. Refusals (*refusal.Error):
// CODE_NOT_OWNER, CODE_FENCED, CODE_DUPLICATE, CODE_GAP; any other error is
// fatal. One Raft entry carries one batch: an entry whose index the instrument
// has seen already is taken for a replay and skipped without an error. Append
// waits when the memtables are at twice their bound. FSM goroutine only.
//
// b must come from record.ParseBatch, or from record.TrustBatch of bytes that
// were checked before.
func (s *Shard) Append(index uint64, b record.Batch) (lastSeq uint64, err error) { return 0, nil }

// AppliedIndex returns the highest Raft index that SetOwned, OpenStream or
// Append was called with, or that the opened directory covered.
func (s *Shard) AppliedIndex() uint64 { return 0 }

// DurableIndex returns the Raft index up to which the directory alone, without
// the log, holds the effect of every entry, also after a crash right now. Log
// entries at or below it may be dropped. It advances by Flush and by
// Snapshot.Persist.
func (s *Shard) DurableIndex() uint64 { return 0 }

// Flush makes everything applied before the call durable in tables and
// manifests, and advances DurableIndex.
func (s *Shard) Flush() error { return nil }

// Owned returns the instruments that the shard owns, sorted by name.
func (s *Shard) Owned() []record.Symbol { return nil }

// Stats states what is held of one instrument.
type Stats struct {
	Instrument      record.Symbol
	Epoch           uint64
	LastSeq         uint64
	MemtableRecords uint64 // MemtableRecords + TableRecords == LastSeq
	TableRecords    uint64
	Tables          int
	TableBytes      uint64
	Chain           uint32 // CRC32C over all record bytes of the stream, in order
	FirstTime       int64  // Unix nanoseconds of the first record
	LastTime        int64  // Unix nanoseconds of the last record
	LastGlobal      uint64
	Index           uint64 // Raft index of the last entry that changed the instrument
}

// Instruments returns the state of every owned instrument, sorted by name.
func (s *Shard) Instruments() []Stats { return nil }

// Stats returns the state of one instrument; refusal CODE_NOT_OWNER.
func (s *Shard) Stats(sym record.Symbol) (Stats, error) { return Stats{}, nil }

// LastSeq returns the instrument's last seq, 0 if it holds nothing; refusal
// CODE_NOT_OWNER.
func (s *Shard) LastSeq(sym record.Symbol) (uint64, error) { return 0, nil }

// ScanOptions select records; all bounds are inclusive and all apply.
type ScanOptions struct {
	FromSeq  uint64 // 0: from the first
	ToSeq    uint64 // 0: to the last at the time of the call
	FromTime int64  // Unix nanoseconds; 0: no bound
	ToTime   int64  // Unix nanoseconds; 0: no bound
	Limit    uint64 // records; 0: no limit
}

// Scan returns an iterator over one instrument's records in order of seq;
// refusal CODE_NOT_OWNER. Close it.
func (s *Shard) Scan(sym record.Symbol, o ScanOptions) (*Iterator, error) { return nil, nil }

// Iterator walks over records in runs that lie together in memory. It is for
// one goroutine.
type Iterator struct{}

// Next moves to the next run of records and reports whether there is one.
func (it *Iterator) Next() bool { return false }

// Records returns the current run, 1 or more records, without copying them.
// They are valid until Next or Close is called, and must not be changed.
func (it *Iterator) Records() []record.Record { return nil }

// Err returns the error that ended the iteration, or nil at its proper end.
func (it *Iterator) Err() error { return nil }

// Close releases what the iterator holds. It may be called twice.
func (it *Iterator) Close() error { return nil }

// All returns the records one by one, for range loops; the caller checks Err.
func (it *Iterator) All() iter.Seq[*record.Record] { return nil }

// GetQuery selects records by an id.
type GetQuery struct {
	Instrument record.Symbol // zero: every owned instrument
	ID         record.ID     // Value must not be 0
	Limit      uint64        // records; 0: no limit
}

// Get calls yield with the records that carry q.ID, in order of (instrument,
// seq), some at a time. The slice is valid during the call only. An error of
// yield ends the search and is returned. Refusals: CODE_NOT_OWNER, CODE_INVALID.
func (s *Shard) Get(ctx context.Context, q GetQuery, yield func([]record.Record) error) error {
	return nil
}

// Watch returns a channel that is closed when records are applied to the
// instrument after the call, or the instrument or shard goes away. To follow a
// stream: Watch, then read up to LastSeq, then wait for the channel, and again.
// Refusal CODE_NOT_OWNER.
func (s *Shard) Watch(sym record.Symbol) (<-chan struct{}, error) { return nil, nil }

// Snapshot captures the state at AppliedIndex without I/O. FSM goroutine only.
// The caller must Release it.
func (s *Shard) Snapshot() *Snapshot { return nil }

// Snapshot is a consistent cut through all instruments. Its methods may be
// called from one goroutine at a time.
type Snapshot struct{}

// Index returns the Raft index of the cut.
func (c *Snapshot) Index() uint64 { return 0 }

// Persist makes the cut durable in the shard itself (DurableIndex reaches
// Index), then writes it to dir, which must not exist and must be on the
// shard's file system: hard links to tables, manifests at exactly the cut, and
// last the file SNAPSHOT that lists all others with size and CRC32C. The shard
// must not be closed before it returns.
func (c *Snapshot) Persist(dir string) (Listing, error) { return Listing{}, nil }

// Release lets go of the tables and memory that the cut holds. It may be called
// twice.
func (c *Snapshot) Release() {}

// ListingName is the name of the file that lists a snapshot directory's files.
const ListingName = "SNAPSHOT"

// Listing is the content of a snapshot directory: its SNAPSHOT file.
type Listing struct {
	Index uint64 // Raft index of the cut
	Files []ListedFile
}

// ListedFile is one file of a snapshot directory.
type ListedFile struct {
	Path string // relative to the directory, '/' between its parts
	Size int64  // bytes
	CRC  uint32 // CRC32C of the whole file
}

// Bytes returns the sum of the files' sizes, without SNAPSHOT itself.
func (l *Listing) Bytes() int64 { return 0 }

// ReadListing reads the SNAPSHOT file of dir.
func ReadListing(fs vfs.FS, dir string) (Listing, error) { return Listing{}, nil }

// VerifyDir checks a snapshot directory, as after a transfer, before it is
// adopted: every listed file is there with its size and CRC, none besides, and
// manifests and tables agree. Errors wrap ErrCorrupt and name the file.
func VerifyDir(fs vfs.FS, dir string) (Listing, error) { return Listing{}, nil }

// Finding is one damage that Verify found.
type Finding struct {
	File   string
	Offset int64
	What   string // what is damaged, what is lost, and what to do
}

// Summary counts what Verify has read.
type Summary struct {
	Files    uint64
	Bytes    uint64
	Records  uint64
	Findings uint64
}

// Verify re-reads a shard's directory that no process has open and checks every
// checksum, the sequence numbers and the chain, calling report for each damage.
// The error says that the check itself could not go on.
func Verify(fs vfs.FS, dir string, report func(Finding)) (Summary, error) { return Summary{}, nil }

// Verify does the same for an open shard: its live tables, manifests and
// memtables. progress, if not nil, is called every now and then.
func (s *Shard) Verify(ctx context.Context, report func(Finding), progress func(Summary)) (Summary, error) {
	return Summary{}, nil
}

// ErrCorrupt means that stored bytes are not what was written. It is never
// retried.
var ErrCorrupt = record.ErrCorrupt

// ErrPoisoned is wrapped by every write after the first fatal error.
var ErrPoisoned = errors.New("shard takes no more writes after an I/O error")

// Describe implements prometheus.Collector.
func (s *Shard) Describe(ch chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s *Shard) Collect(ch chan<- prometheus.Metric) {}
