package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	lagEvery  = 50 * time.Millisecond
	lagMetric = "countinghouse_subscriber_lag_age_seconds{shard=\""
)

// watchLag notes how long the oldest record waits to be committed, by shard, as the
// exchange says it, until ctx ends.
func (t *trader) watchLag(ctx context.Context) {
	tick := time.NewTicker(lagEvery)
	defer tick.Stop()
	h := &http.Client{Timeout: time.Second}
	for {
		select {
		case <-tick.C:
			// While the exchange is away it says nothing: the next answer does.
			_ = lagOf(ctx, h, t.c.metrics, t.steps.waited)
		case <-ctx.Done():
			return
		}
	}
}

func lagOf(ctx context.Context, h *http.Client, url string, note func(shard string, d time.Duration)) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	a, err := h.Do(r)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	lines := bufio.NewScanner(a.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), lagMetric)
		if !ok {
			continue
		}
		shard, value, _ := strings.Cut(rest, "\"} ")
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		note(shard, time.Duration(seconds*float64(time.Second)))
	}
	return lines.Err()
}
