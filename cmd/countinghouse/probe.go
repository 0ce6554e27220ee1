package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
)

const (
	probePause    = 500 * time.Millisecond
	probeAttempt  = 5 * time.Second
	probeBytesMax = 64 << 10 // of an answer; the rest is not read
	probeShownMax = 200      // bytes of an answer that an error shows
	probeTimeout  = 30 * time.Second
)

// newProbe returns the command that asks HTTP endpoints whether they are well. An
// image without a shell and curl has nothing else to ask with.
func newProbe(s *settings) *cobra.Command {
	timeout := probeTimeout
	cmd := &cobra.Command{
		Use:   "probe URL...",
		Short: "Wait until each URL, such as a /readyz or /metrics, answers with status 200",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("name at least one URL")
			}
			for _, arg := range args {
				if u, err := url.Parse(arg); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
					return fmt.Errorf("%q is no URL: use http://host:port/path", arg)
				}
			}
			if timeout <= 0 {
				return fmt.Errorf("--timeout: %v: use more than 0", timeout)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, urls []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			p := s.printer(cmd)
			for _, u := range urls {
				if err := probe(ctx, u); err != nil {
					return output.Exit(output.ExitUnavailable, fmt.Errorf("%s: not within %v: %w", u, timeout, err))
				}
				p.Line("%s is well", u)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to ask, all of them together")
	return cmd
}

// probe asks until the answer is 200 or ctx ends; then it returns the last error.
func probe(ctx context.Context, u string) error {
	for {
		err := probeOnce(ctx, u)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(probePause):
		}
	}
}

func probeOnce(ctx context.Context, u string) error {
	ctx, cancel := context.WithTimeout(ctx, probeAttempt)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, probeBytesMax))
	if err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s: %s", r.Status, strings.TrimSpace(string(b[:min(len(b), probeShownMax)])))
	}
	return nil
}
