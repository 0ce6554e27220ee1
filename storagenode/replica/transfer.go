package replica

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// transfer is how far a snapshot on its way is. It is safe for concurrent use.
type transfer struct {
	index uint64
	total int64 // bytes
	began time.Time
	done  atomic.Int64 // bytes sent or received, and held
	held  atomic.Int64 // bytes that an earlier attempt brought
}

func newTransfer(index uint64, total int64) *transfer {
	return &transfer{index: index, total: total, began: time.Now()}
}

func (t *transfer) hold(n int64) {
	t.held.Add(n)
	t.done.Add(n)
}

// proto returns nil for no transfer.
func (t *transfer) proto() *storagepb.SnapshotTransfer {
	if t == nil {
		return nil
	}
	return &storagepb.SnapshotTransfer{
		Index: t.index, TotalBytes: uint64(t.total), DoneBytes: uint64(t.done.Load()), HeldBytes: uint64(t.held.Load()),
		ElapsedMs: uint64(time.Since(t.began).Milliseconds()),
	}
}

// transferTable holds the snapshots that are on their way. It is safe for
// concurrent use.
type transferTable struct {
	sent, received, resumed atomic.Int64 // bytes, ever

	mu  sync.Mutex
	to  map[raft.ServerID]*transfer
	own *transfer // that this node receives
}

// sending notes a transfer to a peer until done is called.
func (t *transferTable) sending(id raft.ServerID, x *transfer) (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.to == nil {
		t.to = make(map[raft.ServerID]*transfer)
	}
	t.to[id] = x
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.to[id] == x {
			delete(t.to, id)
		}
	}
}

// receiving notes the transfer to this node until done is called.
func (t *transferTable) receiving(x *transfer) (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.own = x
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.own = nil
	}
}

// peer returns the transfer to a peer, nil if there is none.
func (t *transferTable) peer(id raft.ServerID) *transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.to[id]
}

// incoming returns the transfer to this node, nil if there is none.
func (t *transferTable) incoming() *transfer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.own
}

// totals returns, over all peers, the bytes to be sent and those done, and how
// many transfers there are.
func (t *transferTable) totals() (n int, total, done int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, x := range t.to {
		n, total, done = n+1, total+x.total, done+x.done.Load()
	}
	return n, total, done
}
