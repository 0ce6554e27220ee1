package wal

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"golang.org/x/sys/unix"
)

// BenchmarkStoreLogs stores groups of entries in this log, in raft-boltdb, and,
// as the floor, as bare writes of the same number of bytes, each with its
// fdatasync, to a file that is filled already. All run on one disk, one after
// another.
func BenchmarkStoreLogs(b *testing.B) {
	stores := []struct {
		name string
		open func(b *testing.B) (raft.LogStore, func() error)
	}{{"floor", openFloor}, {"wal", openBenchWAL}, {"boltdb", openBoltDB}}
	for _, size := range []int{128, 12_800} {
		for _, batch := range []int{1, 10, 100} {
			for _, s := range stores {
				b.Run(fmt.Sprintf("size=%d/batch=%d/%s", size, batch, s.name), func(b *testing.B) {
					store, closeStore := s.open(b)
					storeGroups(b, store, batch, size)
					if err := closeStore(); err != nil {
						b.Fatal(err)
					}
				})
			}
		}
	}
}

func storeGroups(b *testing.B, store raft.LogStore, batch, size int) {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	entries, group := make([]raft.Log, batch), make([]*raft.Log, batch)
	for i := range entries {
		entries[i] = raft.Log{Term: 1, Data: data, AppendedAt: time.Unix(1, 0)}
		group[i] = &entries[i]
	}
	index := uint64(0)
	b.SetBytes(int64(batch * size))
	b.ReportAllocs()
	for b.Loop() {
		for _, l := range group {
			index++
			l.Index = index
		}
		if err := store.StoreLogs(group); err != nil {
			b.Fatal(err)
		}
		if index%(1<<20/uint64(size)*64) < uint64(batch) && index > uint64(batch) {
			if err := store.DeleteRange(1, index-uint64(batch)); err != nil { // as snapshots do
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(index)/b.Elapsed().Seconds(), "entries/s")
}

func openBenchWAL(b *testing.B) (raft.LogStore, func() error) {
	w, err := Open(vfs.Default, b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	waitPrepared(w)
	return w, w.Close
}

func openBoltDB(b *testing.B) (raft.LogStore, func() error) {
	s, err := raftboltdb.NewBoltStore(filepath.Join(b.TempDir(), "raft.db"))
	if err != nil {
		b.Fatal(err)
	}
	return s, s.Close
}

// floor writes and syncs, and keeps nothing.
type floor struct {
	raft.LogStore
	file *os.File
	at   int64
	buf  []byte
}

const floorBytes = 64 << 20

func openFloor(b *testing.B) (raft.LogStore, func() error) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.Write(make([]byte, floorBytes)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return &floor{file: f}, f.Close
}

func (f *floor) StoreLogs(logs []*raft.Log) error {
	f.buf = f.buf[:0]
	for _, l := range logs {
		f.buf = append(f.buf, l.Data...)
	}
	if f.at+int64(len(f.buf)) > floorBytes {
		f.at = 0
	}
	if _, err := f.file.WriteAt(f.buf, f.at); err != nil {
		return err
	}
	f.at += int64(len(f.buf))
	return unix.Fdatasync(int(f.file.Fd()))
}

func (f *floor) DeleteRange(uint64, uint64) error { return nil }

func BenchmarkGetLog(b *testing.B) {
	for name, cacheBytes := range map[string]int64{"memory": 64 << 20, "disk": -1} {
		b.Run(name, func(b *testing.B) {
			w, err := Open(vfs.Default, b.TempDir(), Options{CacheBytes: cacheBytes})
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			mustStore(b, w, makeRun(1, 1000, 1, 12_800)...)
			b.SetBytes(12_800)
			b.ReportAllocs()
			var l raft.Log
			for i := uint64(0); b.Loop(); i++ {
				if err := w.GetLog(1+i%1000, &l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen reads a log of 256 MiB.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	w, err := Open(vfs.Default, dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	for i := uint64(1); i <= 20_000; i += 500 {
		mustStore(b, w, makeRun(i, i+499, 1, 12_800)...)
	}
	mustClose(b, w)
	b.SetBytes(20_000 * 12_800)
	for b.Loop() {
		w, err := Open(vfs.Default, dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		mustClose(b, w)
	}
	b.ReportMetric(20_000*100*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
