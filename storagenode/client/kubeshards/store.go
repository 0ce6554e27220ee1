package kubeshards

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/countinghouse/countinghouse/api/v1"
)

// store holds what the API server said last. It is the reflector's store; objects
// are not changed once they are in it.
type store struct {
	cluster string

	mu      sync.Mutex
	shards  map[string]*v1.InstrumentShard // of the cluster, by name
	synced  bool                           // there was a whole list
	changed chan struct{}                  // closed and replaced at each change
	last    time.Time                      // when the API server said something; zero for never
	err     error                          // of the last request, nil if it was answered
	errors  uint64
}

func newStore(cluster string) *store {
	return &store{cluster: cluster, shards: make(map[string]*v1.InstrumentShard), changed: make(chan struct{})}
}

// view is what a store holds at one time.
type view struct {
	shards  []*v1.InstrumentShard // sorted by name
	synced  bool
	err     error
	changed <-chan struct{} // closed at the next change
}

func (s *store) view() view {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := view{synced: s.synced, err: s.err, changed: s.changed}
	for _, shard := range s.shards {
		v.shards = append(v.shards, shard)
	}
	slices.SortFunc(v.shards, func(a, b *v1.InstrumentShard) int { return strings.Compare(a.Name, b.Name) })
	return v
}

// heard notes that the API server answered.
func (s *store) heard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.err = time.Now(), nil
}

// failed notes that it did not.
func (s *store) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errors++
	s.err = err
}

// put takes an object in, or out when it is gone or of another cluster. The caller
// holds mu.
func (s *store) put(obj any, gone bool) error {
	shard, ok := obj.(*v1.InstrumentShard)
	if !ok {
		return fmt.Errorf("kubeshards: the API server sent a %T", obj)
	}
	if gone || shard.Spec.Cluster != s.cluster {
		delete(s.shards, shard.Name)
	} else {
		s.shards[shard.Name] = shard
	}
	return nil
}

// change puts objects in and wakes who waits.
func (s *store) change(obj any, gone bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.err = time.Now(), nil
	defer s.wake()
	return s.put(obj, gone)
}

func (s *store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error { return s.change(obj, false) }

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.change(obj, false) }

// Delete implements cache.ReflectorStore.
func (s *store) Delete(obj any) error { return s.change(obj, true) }

// Replace implements cache.ReflectorStore.
func (s *store) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.err = time.Now(), nil
	defer s.wake()
	clear(s.shards)
	for _, obj := range list {
		if err := s.put(obj, false); err != nil {
			return err
		}
	}
	s.synced = true
	return nil
}

// Bookmark implements cache.ReflectorBookmarkStore.
func (s *store) Bookmark(string) error {
	s.heard()
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *store) Resync() error { return nil }
