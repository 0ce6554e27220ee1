package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/exchange"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/client/kubeshards"
)

// The values of --shards-from.
const (
	fromFile       = "file"
	fromKubernetes = "kubernetes"
)

// checkSource reports flags that contradict --shards-from.
func (f *flags) checkSource() error {
	given := func(value string) bool { return value != "" }
	switch {
	case f.shardsFrom != fromFile && f.shardsFrom != fromKubernetes:
		return fmt.Errorf("%q: use file or kubernetes", f.shardsFrom)
	case f.shardsFrom == fromKubernetes && given(f.shards):
		return errors.New("kubernetes goes without --shards: leave one of them out")
	case f.shardsFrom == fromKubernetes && !given(f.cluster):
		return errors.New("kubernetes needs --cluster: the spec.cluster of the InstrumentShards")
	case f.shardsFrom == fromFile && (given(f.namespace) || given(f.kubeconfig)):
		return errors.New("--namespace and --kubeconfig are for --shards-from=kubernetes")
	}
	return nil
}

// kubernetes returns the source of a shard map that InstrumentShards make.
func (f *flags) kubernetes(log *slog.Logger) (*shardSource, error) {
	reach, namespace, err := kubeshards.Reach(f.kubeconfig)
	if err != nil {
		return nil, err
	}
	if f.namespace != "" {
		namespace = f.namespace
	}
	if namespace == "" {
		return nil, errors.New("no namespace is known: give --namespace")
	}
	w, err := kubeshards.New(kubeshards.Config{REST: reach, Namespace: namespace, Cluster: f.cluster, Log: log})
	if err != nil {
		return nil, err
	}
	return &shardSource{
		watcher: w, cluster: f.cluster, log: log,
		path: filepath.Clean(f.outbox) + ".shards", longest: f.storageWait, shortest: f.drainWait,
	}, nil
}

// shardSource takes the shard map from Kubernetes, and keeps the last one in a file
// beside the outbox, so that the exchange starts while the API server is away.
type shardSource struct {
	watcher *kubeshards.Watcher
	cluster string
	log     *slog.Logger
	path    string
	// longest is how long a start waits for shards, shortest how long it waits for
	// an API server that it can do without.
	longest, shortest time.Duration
}

// start runs the watcher until stop is called.
func (s *shardSource) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.watcher.Run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// prepare gives the configuration its shard map.
func (s *shardSource) prepare(ctx context.Context, c *exchange.Config) (err error) {
	instruments := []string{record.AccountStream}
	for i := range c.Instruments.Instruments {
		instruments = append(instruments, c.Instruments.Instruments[i].Symbol.String())
	}
	c.Follow = func(ctx context.Context, c *client.Client) { s.watcher.Follow(ctx, c, s.keep) }
	c.Shards, err = s.await(ctx, instruments)
	return err
}

func (s *shardSource) await(ctx context.Context, instruments []string) (*client.Map, error) {
	waiting, cancel := context.WithTimeout(ctx, s.longest)
	defer cancel()
	if kept := s.kept(); kept != nil {
		short, cancel := context.WithTimeout(waiting, s.shortest)
		defer cancel()
		m, err := s.watcher.Await(short, instruments)
		if err == nil {
			return m, nil
		}
		if errors.Is(err, kubeshards.ErrAway) && ctx.Err() == nil {
			s.log.Warn("starting with the shards of the last start", "file", s.path, "error", err)
			return kept, nil
		}
	}
	m, err := s.watcher.Await(waiting, instruments)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w; waited %v (--storage-wait)", err, s.longest)
	}
	return m, err
}

// kept returns the map of the last start, nil for none.
func (s *shardSource) kept() *client.Map {
	m, err := client.LoadMap(s.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		s.log.Warn("the shards of the last start are not known", "error", err)
		return nil
	case m.Cluster != s.cluster:
		s.log.Warn("the shards of the last start are of another cluster", "file", s.path, "cluster", m.Cluster)
		return nil
	}
	return m
}

// keep replaces the file.
func (s *shardSource) keep(m *client.Map) {
	if err := writeMap(s.path, m); err != nil {
		s.log.Warn("the shards are not kept for the next start", "error", err)
	}
}

func writeMap(path string, m *client.Map) error {
	b, err := m.YAML()
	if err != nil {
		return err
	}
	temporary := path + ".tmp"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
