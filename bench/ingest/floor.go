package ingest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	floorFileBytes  = 32 << 20
	floorGroupBytes = 4 << 20 // of one write; a batch must fit
	floorQueue      = 64      // batches by which one of the files may lag
)

// floor is what the disk allows: no consensus, no network, no index.
var floor = system{
	name:    "floor",
	durable: "write and fdatasync of what is pending, returned on 2 of 3 files",
	note: "no network, no consensus; three preallocated, zero-filled files a shard, written by one thread each; " +
		"batches that wait for the same file share a write",
	open: openFloor,
}

type floorCluster struct {
	shards [][]*floorFile
	counts []atomic.Int64 // acknowledged records, by shard
}

func openFloor(_ context.Context, dir string, shards int) (cluster, error) {
	c := &floorCluster{counts: make([]atomic.Int64, shards)}
	for shard := range shards {
		var files []*floorFile
		for i := range replicas {
			f, err := openFloorFile(filepath.Join(dir, strconv.Itoa(shard)+"-"+strconv.Itoa(i)))
			if err != nil {
				_ = c.Close()
				return nil, err
			}
			files = append(files, f)
			c.shards = append(c.shards[:shard], files)
		}
	}
	return c, nil
}

// floorBatch is a batch on its way to the files of its shard.
type floorBatch struct {
	data    []byte
	written atomic.Int32
	failed  atomic.Bool
	records *atomic.Int64
	done    func(error)
}

// wrote notes that one of the files has the batch, or does not.
func (b *floorBatch) wrote(err error) {
	if err != nil {
		if !b.failed.Swap(true) && b.written.Load() < replicas/2+1 {
			b.done(err)
		}
		return
	}
	if b.written.Add(1) == replicas/2+1 && !b.failed.Load() {
		b.records.Add(int64(len(b.data) / recordBytes))
		b.done(nil)
	}
}

func (c *floorCluster) Submit(shard int, batch []byte, done func(error)) {
	b := &floorBatch{data: batch, records: &c.counts[shard], done: done}
	for _, f := range c.shards[shard] {
		f.queue <- b
	}
}

func (c *floorCluster) Stored(shard int) (int, error) { return int(c.counts[shard].Load()), nil }

func (c *floorCluster) Close() error {
	var closes []func() error
	for _, files := range c.shards {
		for _, f := range files {
			closes = append(closes, f.close)
		}
	}
	return joinErrors(closes)
}

// floorFile is written from its beginning to its end, again and again.
type floorFile struct {
	file   *os.File
	queue  chan *floorBatch
	ended  chan struct{}
	offset int64
	buffer []byte
}

func openFloorFile(name string) (*floorFile, error) {
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(make([]byte, floorFileBytes))
	if err == nil {
		err = file.Sync()
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	f := &floorFile{file: file, queue: make(chan *floorBatch, floorQueue), ended: make(chan struct{}), buffer: make([]byte, 0, floorGroupBytes)}
	go f.run()
	return f, nil
}

func (f *floorFile) close() error {
	close(f.queue)
	<-f.ended
	return f.file.Close()
}

func (f *floorFile) run() {
	defer close(f.ended)
	var group []*floorBatch
	for b := range f.queue {
		group = f.collect(append(group[:0], b))
		err := f.write(group)
		for _, b := range group {
			b.wrote(err)
		}
	}
}

// collect adds what is pending, as far as it fits into one write.
func (f *floorFile) collect(group []*floorBatch) []*floorBatch {
	size := len(group[0].data)
	for size+len(group[0].data) <= floorGroupBytes { // all batches have one size
		select {
		case b, ok := <-f.queue:
			if !ok {
				return group
			}
			group, size = append(group, b), size+len(b.data)
		default:
			return group
		}
	}
	return group
}

func (f *floorFile) write(group []*floorBatch) error {
	f.buffer = f.buffer[:0]
	for _, b := range group {
		f.buffer = append(f.buffer, b.data...)
	}
	if f.offset+int64(len(f.buffer)) > floorFileBytes {
		f.offset = 0
	}
	if _, err := f.file.WriteAt(f.buffer, f.offset); err != nil {
		return err
	}
	f.offset += int64(len(f.buffer))
	return unix.Fdatasync(int(f.file.Fd()))
}
