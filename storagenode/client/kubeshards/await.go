package kubeshards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/countinghouse/countinghouse/storagenode/client"
)

// What callers handle; test with errors.Is.
var (
	// ErrAway means that the API server did not tell which shards there are.
	ErrAway = errors.New("the Kubernetes API server gave no list of InstrumentShards")
	// ErrIncomplete means that instruments have no shard that can be used.
	ErrIncomplete = errors.New("not every instrument has a shard")
)

// Await returns the cluster's shard map once each of the instruments has a shard
// that is formed, and every formed shard has a member to talk to. When ctx ends
// before, the error is ErrAway or ErrIncomplete with what is missing.
func (w *Watcher) Await(ctx context.Context, instruments []string) (*client.Map, error) {
	said := ""
	for {
		v := w.store.view()
		m, obstacles := shardMap(w.config.Cluster, v.shards, instruments)
		if v.synced && len(obstacles) == 0 {
			return m, m.Check()
		}
		err := w.missing(v, obstacles)
		if v.synced && said != err.Error() {
			said = err.Error()
			w.config.Log.Info("waiting for shards", "missing", said)
		}
		select {
		case <-ctx.Done():
			return nil, w.missing(w.store.view(), obstacles)
		case <-v.changed:
		}
	}
}

// missing is the error of a map that is not whole.
func (w *Watcher) missing(v view, obstacles []string) error {
	where := fmt.Sprintf("namespace %s, cluster %s", w.config.Namespace, w.config.Cluster)
	switch {
	case v.synced:
		return fmt.Errorf("%w (%s): %s", ErrIncomplete, where, strings.Join(obstacles, "; "))
	case v.err != nil:
		return fmt.Errorf("%w (%s): %w", ErrAway, where, v.err)
	}
	return fmt.Errorf("%w in time (%s)", ErrAway, where)
}

// Follow sets the client's members as the InstrumentShards change, until ctx ends.
// told, if it is set, is called from Follow with the whole map, first as it is and
// then at each change.
//
// A shard that has disappeared, has no member with a pod, or is another one of the
// same name, which does not have the data, keeps the members that it had.
func (w *Watcher) Follow(ctx context.Context, c *client.Client, told func(*client.Map)) {
	f := follower{w: w, client: c, shards: make(map[string]*followed)}
	for _, def := range c.Map().Shards {
		f.shards[def.Name] = &followed{def: def, members: c.Members(def.Name)}
	}
	for first := true; ; first = false {
		v := w.store.view()
		changed := false
		if v.synced {
			changed = f.apply(v.shards)
		}
		if told != nil && (changed || first) {
			told(f.shardMap())
		}
		select {
		case <-ctx.Done():
			return
		case <-v.changed:
		}
	}
}

// shardMap returns the map with the present members.
func (f *follower) shardMap() *client.Map {
	m := &client.Map{Cluster: f.client.Map().Cluster, Shards: slices.Clone(f.client.Map().Shards)}
	for i := range m.Shards {
		m.Shards[i].Members = f.client.Members(m.Shards[i].Name)
	}
	return m
}
