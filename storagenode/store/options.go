package store

import "time"

// Options bound a Shard. A zero field takes its default.
type Options struct {
	// MemtableBytesMax is the size in bytes at which one instrument's
	// memtable is flushed; default 64 MiB.
	MemtableBytesMax int64
	// MemtableTotalBytesMax is the size in bytes of all memtables at which the
	// largest is flushed; default 256 MiB. At twice this Append waits.
	MemtableTotalBytesMax int64
	// TableBytesMax bounds the records, in bytes, that a merge puts into one
	// table; default 1 GiB.
	TableBytesMax int64
	// OpenTablesMax bounds the tables that are mapped into memory at a time
	// beyond those being read; default 4096.
	OpenTablesMax int
	// FullDiskRetry is how long after a flush that met a full disk it is tried again;
	// default 1 s.
	FullDiskRetry time.Duration
	// OnFatal is called once, on a goroutine of its own, with the first error
	// after which the shard takes no more writes. The process should end: what is in
	// the memtables can not be made durable any more. Reads go on.
	OnFatal func(error)
}

const (
	defaultMemtableBytesMax      = 64 << 20
	defaultMemtableTotalBytesMax = 256 << 20
	defaultTableBytesMax         = 1 << 30
	defaultOpenTablesMax         = 4096
	defaultFullDiskRetry         = time.Second
)

// MemtablesMax returns how many bytes the memtables of a shard hold at most, but for
// the batch that takes them beyond it.
func (o Options) MemtablesMax() int64 {
	o = o.withDefaults()
	return o.memtablesMax()
}

// memtablesMax is MemtablesMax of options that are complete: each append asks.
func (o *Options) memtablesMax() int64 { return 2 * o.MemtableTotalBytesMax }

func (o Options) withDefaults() Options {
	if o.MemtableBytesMax <= 0 {
		o.MemtableBytesMax = defaultMemtableBytesMax
	}
	if o.MemtableTotalBytesMax <= 0 {
		o.MemtableTotalBytesMax = defaultMemtableTotalBytesMax
	}
	if o.TableBytesMax <= 0 {
		o.TableBytesMax = defaultTableBytesMax
	}
	if o.OpenTablesMax <= 0 {
		o.OpenTablesMax = defaultOpenTablesMax
	}
	if o.FullDiskRetry <= 0 {
		o.FullDiskRetry = defaultFullDiskRetry
	}
	if o.OnFatal == nil {
		o.OnFatal = func(error) {}
	}
	return o
}
