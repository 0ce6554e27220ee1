package replica

import (
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/storagenode/store"
)

// liveStore is an open store and those who use it. A store that was replaced by a
// restored snapshot is closed and removed when the last of them lets go, so that
// neither readers nor the Raft loop wait for the other.
type liveStore struct {
	shard *store.Shard
	fs    vfs.FS
	dir   string

	mu      sync.Mutex
	users   int
	retired bool // no users any more once users is 0
	remove  bool
	closed  chan struct{} // closed after shard
	err     error         // of closing; valid once closed is closed
}

func newLiveStore(fs vfs.FS, dir string, shard *store.Shard) *liveStore {
	return &liveStore{shard: shard, fs: fs, dir: dir, closed: make(chan struct{})}
}

// acquire reports false if the store is on its way out.
func (l *liveStore) acquire() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.retired {
		return false
	}
	l.users++
	return true
}

func (l *liveStore) release() {
	l.mu.Lock()
	l.users--
	last := l.retired && l.users == 0
	l.mu.Unlock()
	if last {
		l.close()
	}
}

// retire closes the store when its last user lets go; with remove it also
// deletes the directory.
func (l *liveStore) retire(remove bool) {
	l.mu.Lock()
	last := !l.retired && l.users == 0
	l.retired = true
	l.remove = l.remove || remove
	l.mu.Unlock()
	if last {
		l.close()
	}
}

func (l *liveStore) close() {
	defer close(l.closed)
	l.err = l.shard.Close()
	if l.remove {
		_ = l.fs.RemoveAll(l.dir) // what stays is dropped at the next start
	}
}
