package localcluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/client"
)

// MapFile is the name of the shard map that WriteMap writes.
const MapFile = "shards.yaml"

const leaderWait = 30 * time.Second

// Map returns the cluster's shard map.
func (c *Cluster) Map() *client.Map {
	m := &client.Map{Cluster: c.options.Cluster}
	for _, s := range c.options.Shards {
		shard := client.Shard{Name: s.Name, Instruments: s.Instruments}
		for _, member := range c.Of(s.Name) {
			shard.Members = append(shard.Members, client.Member{ID: member.ID, Address: member.Address})
		}
		m.Shards = append(m.Shards, shard)
	}
	return m
}

// WriteMap writes the shard map into the cluster's directory, for programs that
// take one, and returns the file's name.
func (c *Cluster) WriteMap() (string, error) {
	path := filepath.Join(c.options.Dir, MapFile)
	b, err := c.Map().YAML()
	if err == nil {
		err = os.WriteFile(path, b, 0o644)
	}
	if err != nil {
		return "", fmt.Errorf("shard map: %w", err)
	}
	return path, nil
}

// AwaitLeaders waits, for a bounded time, until every shard has a leader.
func (c *Cluster) AwaitLeaders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaderWait)
	defer cancel()
	asked, err := client.New(c.Map(), c.options.Client)
	if err != nil {
		return err
	}
	defer asked.Close()
	for _, s := range c.options.Shards {
		if _, err := asked.Leader(ctx, s.Name); err != nil {
			return fmt.Errorf("no leader in shard %s: %w", s.Name, err)
		}
	}
	return nil
}
