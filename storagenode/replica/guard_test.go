package replica

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// faultyLog is a log store whose writes fail or hang.
type faultyLog struct {
	*raft.InmemStore
	storeLogs func([]*raft.Log) error
}

func (f *faultyLog) StoreLogs(logs []*raft.Log) error { return f.storeLogs(logs) }

func guarded(t *testing.T, timeout time.Duration, storeLogs func(*raft.InmemStore, []*raft.Log) error) (*guardedLog, chan error) {
	t.Helper()
	fatal := make(chan error, 1)
	g := newDiskGuard(timeout, func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}, newMetrics(), noRoomMaker{})
	t.Cleanup(g.close)
	store := raft.NewInmemStore()
	f := &faultyLog{InmemStore: store, storeLogs: func(l []*raft.Log) error { return storeLogs(store, l) }}
	return &guardedLog{LogStore: f, guard: g, noRoom: walIsFull, refused: func(uint64) {}}, fatal
}

// noRoomMaker has no ballast.
type noRoomMaker struct{}

func (noRoomMaker) makeRoom(int64) bool { return false }
func (noRoomMaker) isFull(error)        {}

// roomMakerFunc has some.
type roomMakerFunc func()

func (f roomMakerFunc) makeRoom(int64) bool { f(); return true }
func (roomMakerFunc) isFull(error)          {}

func TestAHungDiskEndsTheNode(t *testing.T) {
	release := make(chan struct{})
	log, fatal := guarded(t, 50*time.Millisecond, func(*raft.InmemStore, []*raft.Log) error { <-release; return nil })
	done := make(chan error, 1)
	go func() { done <- log.StoreLog(&raft.Log{Index: 1}) }()
	if err := <-fatal; !strings.Contains(err.Error(), "disk hangs") {
		t.Errorf("got %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the write itself: %v", err)
	}
}

func TestAFailedWriteEndsTheNode(t *testing.T) {
	log, fatal := guarded(t, time.Minute, func(*raft.InmemStore, []*raft.Log) error { return unix.EIO })
	if err := log.StoreLog(&raft.Log{Index: 1}); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	if err := <-fatal; !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
}

func TestBallastGetsALogOverAFullDisk(t *testing.T) {
	full := true
	log, fatal := guarded(t, time.Minute, func(s *raft.InmemStore, logs []*raft.Log) error {
		if full { // the first two entries still fit
			if err := s.StoreLogs(logs[:2]); err != nil {
				return err
			}
			return fmt.Errorf("new segment: %w", unix.ENOSPC)
		}
		if logs[0].Index != 3 {
			t.Errorf("the second attempt begins at %d", logs[0].Index)
		}
		return s.StoreLogs(logs)
	})
	log.guard.room = roomMakerFunc(func() { full = false })
	if err := log.StoreLogs([]*raft.Log{{Index: 1}, {Index: 2}, {Index: 3}, {Index: 4}}); err != nil {
		t.Fatal(err)
	}
	if last, _ := log.LastIndex(); last != 4 {
		t.Errorf("last index %d, want 4", last)
	}
	select {
	case err := <-fatal:
		t.Errorf("the node ended: %v", err)
	default:
	}
}
