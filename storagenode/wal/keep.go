package wal

import (
	"bytes"

	"github.com/hashicorp/raft"
)

// Frames go from the scan to the keeper by so many, or when so many bytes are in them;
// so many times the scan may be ahead.
const (
	keepFrames  = 64
	keepBytes   = 256 << 10
	keepBacklog = 16
)

// keeper copies the entries of a segment while it is scanned, on a goroutine of its
// own, and holds the newest that fit.
type keeper struct {
	cache cache
	shown func(*raft.Log)
	ext   []byte // the last entry's extensions: most entries have equal ones

	found []foundFrame // of the scan, to be handed over
	bytes int64        // of found

	frames chan []foundFrame // closed by finish
	done   chan struct{}
}

// foundFrame is an entry's frame, which was checked.
type foundFrame struct {
	header frameHeader
	bytes  []byte // from the frame's first one
}

// newKeeper returns nil if there is room for nothing.
func newKeeper(bytesMax int64, shown func(*raft.Log)) *keeper {
	if bytesMax <= 0 {
		return nil
	}
	k := &keeper{
		cache: cache{bytesMax: bytesMax}, shown: shown,
		frames: make(chan []foundFrame, keepBacklog), done: make(chan struct{}),
	}
	go k.run()
	return k
}

// take is shown an entry's frame, which was checked, at the start of b.
func (k *keeper) take(b []byte, h *frameHeader) {
	if k == nil {
		return
	}
	k.found = append(k.found, foundFrame{*h, b})
	k.bytes += h.size()
	if len(k.found) == keepFrames || k.bytes >= keepBytes {
		k.frames <- k.found
		k.found, k.bytes = make([]foundFrame, 0, keepFrames), 0
	}
}

func (k *keeper) run() {
	defer close(k.done)
	for found := range k.frames {
		for i := range found {
			l := k.copy(&found[i])
			k.shown(&l)
			k.cache.add(&l)
		}
	}
}

// copy returns the entry with memory of its own, in which Data begins at a multiple of
// 8: the segment's bytes are read into again.
func (k *keeper) copy(f *foundFrame) raft.Log {
	var l raft.Log
	f.header.entry(f.bytes, &l)
	l.Data = append([]byte(nil), l.Data...)
	if !bytes.Equal(l.Extensions, k.ext) {
		k.ext = bytes.Clone(l.Extensions)
	}
	l.Extensions = k.ext
	return l
}

// finish returns what is held, once nothing is read of the segment's bytes any more.
func (k *keeper) finish() cache {
	if k == nil {
		return cache{}
	}
	if len(k.found) > 0 {
		k.frames <- k.found
	}
	close(k.frames)
	<-k.done
	return k.cache
}
