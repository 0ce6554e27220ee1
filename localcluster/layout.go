package localcluster

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/countinghouse/countinghouse/storagenode/client"
)

// ErrLayout means that the directory holds a cluster of another layout.
var ErrLayout = errors.New("directory holds a cluster of another layout")

// checkLayout compares the cluster with the shard map that an earlier start wrote
// into the directory. The nodes there keep what they were started with first, so
// that another layout would be a map that is not true.
func (o Options) checkLayout() error {
	path := filepath.Join(o.Dir, MapFile)
	kept, err := client.LoadMap(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("local cluster: %w", err)
	}
	if difference := o.differsFrom(kept); difference != "" {
		return fmt.Errorf("local cluster: %s: %w: %s; start it as it was, or choose another directory", path, ErrLayout, difference)
	}
	return nil
}

// differsFrom names the first difference between the options and a shard map.
func (o Options) differsFrom(kept *client.Map) string {
	if kept.Cluster != o.Cluster {
		return fmt.Sprintf("its name is %q, not %q", kept.Cluster, o.Cluster)
	}
	if len(kept.Shards) != len(o.Shards) {
		return fmt.Sprintf("it has %d shards, not %d", len(kept.Shards), len(o.Shards))
	}
	for _, s := range o.Shards {
		old := kept.Shard(s.Name)
		if old == nil {
			return fmt.Sprintf("it has no shard %s", s.Name)
		}
		if len(old.Members) != s.Replicas {
			return fmt.Sprintf("its shard %s has %d replicas, not %d", s.Name, len(old.Members), s.Replicas)
		}
		if have, want := sortedNames(old.Instruments), sortedNames(s.Instruments); have != want {
			return fmt.Sprintf("its shard %s has the instruments %s, not %s", s.Name, have, want)
		}
	}
	return ""
}

func sortedNames(names []string) string {
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}
