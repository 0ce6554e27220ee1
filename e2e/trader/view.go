package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"sync"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

func readMap(r io.Reader) (*client.Map, error) {
	b, err := readBody(r)
	if err != nil {
		return nil, err
	}
	return client.ParseMap(b)
}

// view follows the streams of the shards, as they are committed.
type view struct {
	end  context.CancelFunc
	done sync.WaitGroup
	c    *client.Client

	mu   sync.Mutex
	seen map[string]time.Time // by shard, when the last record was seen
}

func (v *view) stop() {
	v.end()
	_ = v.c.Close() // it was for reading
	v.done.Wait()
}

// follow takes a shard map in the place of the one before.
func (t *trader) follow(ctx context.Context, m *client.Map) error {
	c, err := client.New(m, client.Options{TLS: t.reader})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	v := &view{end: cancel, c: c, seen: map[string]time.Time{}}
	for _, shard := range m.Shards {
		for _, name := range shard.Instruments {
			sym, err := record.MakeSymbol(name)
			if err != nil {
				cancel()
				return err
			}
			if name != record.AccountStream {
				v.done.Go(func() { t.tail(ctx, v, shard.Name, sym) })
			}
		}
	}
	t.mu.Lock()
	before := t.view
	t.view = v
	t.mu.Unlock()
	if before != nil {
		before.mu.Lock()
		for shard, at := range before.seen { // a gap may span two maps
			v.mu.Lock()
			if _, ok := v.seen[shard]; !ok {
				v.seen[shard] = at
			}
			v.mu.Unlock()
		}
		before.mu.Unlock()
		before.stop()
	}
	return nil
}

// tail sees a stream's records until ctx ends.
func (t *trader) tail(ctx context.Context, v *view, shard string, sym record.Symbol) {
	for ctx.Err() == nil {
		err := v.c.Tail(ctx, sym, 0, client.Replica{}, func([]record.Record) error {
			v.mu.Lock()
			defer v.mu.Unlock()
			now := time.Now()
			if last, ok := v.seen[shard]; ok && !t.paused.Load() {
				t.steps.gap(shard, now.Sub(last))
			}
			v.seen[shard] = now
			return nil
		})
		if err != nil && ctx.Err() == nil {
			log.Printf("tail %s: %v", sym, err)
			select {
			case <-time.After(retryWait):
			case <-ctx.Done():
			}
		}
	}
}

// memberOf names a member in findings.
func memberOf(shard client.Shard, m client.Member) string {
	return fmt.Sprintf("%s (shard %s)", m.ID, shard.Name)
}
