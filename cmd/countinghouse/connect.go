package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

// target is the cluster that a command talks to.
type target struct {
	shards  string
	tlsDir  string
	replica string
	timeout durationFlag
}

func (t *target) bind(cmd *cobra.Command) {
	t.bindOptional(cmd)
	if err := cmd.MarkFlagRequired("shards"); err != nil {
		cobra.CheckErr(err)
	}
}

// bindOptional is bind for a command that can do without a cluster.
func (t *target) bindOptional(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.shards, "shards", "", "shard map `file` (YAML); \"cluster up\" and \"demo --data-dir\" write one")
	cmd.Flags().StringVar(&t.tlsDir, "tls-dir", "", "`directory` with tls.crt, tls.key and ca.crt, for nodes that want a certificate")
	cmd.Flags().StringVar(&t.replica, "replica", "", "read from the member with this `id`, which may be behind, instead of the leader")
	cmd.Flags().Var(&t.timeout, "timeout", "give up after this `time`, such as 10s, when a shard does not answer")
}

// connect opens the cluster that the flags name.
func (t *target) connect() (*client.Client, error) {
	m, err := client.LoadMap(t.shards)
	if err != nil {
		return nil, output.Exit(output.ExitUsage, err)
	}
	var o client.Options
	if t.tlsDir != "" {
		// The files are looked at with each connection, which is enough for a command.
		if o.TLS, err = identity.Open(t.tlsDir, identity.Options{}); err != nil {
			return nil, output.Exit(output.ExitUsage, fmt.Errorf("--tls-dir: %w", err))
		}
	}
	c, err := client.New(m, o)
	return c, output.Exit(output.ExitUsage, err)
}

// from returns the replica that reads go to.
func (t *target) from() client.Replica { return client.Replica{Member: t.replica} }

// bounded returns ctx with the command's timeout.
func (t *target) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, t.timeout.orDefault())
}

// reached gives an error the exit code that tells a wrong request from a server
// that does not answer.
func reached(err error) error {
	var r *refusal.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &r) && !refusal.Retryable(r.Code):
		return output.Exit(output.ExitFailed, err)
	case errors.Is(err, record.ErrCorrupt):
		return output.Exit(output.ExitFailed, err)
	case errors.As(err, &r), errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNoAnswer),
		status.Code(err) == codes.Unavailable, status.Code(err) == codes.DeadlineExceeded:
		return output.Exit(output.ExitUnavailable, err)
	case status.Code(err) == codes.PermissionDenied:
		return output.Exit(output.ExitFailed, err)
	}
	return err
}

// instrumentArg parses a command's instrument.
func instrumentArg(name string) (record.Symbol, error) {
	sym, err := record.MakeSymbol(name)
	return sym, output.Exit(output.ExitUsage, err)
}
