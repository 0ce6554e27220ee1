// Command countinghouse is the project's command line: a demonstration that
// proves its own result, replays of recorded order flow, a local cluster to try
// things on, and tools that read and check what is stored.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "countinghouse: %v\n", err)
	}
	os.Exit(output.ExitCode(err))
}

// settings are the flags that every command takes.
type settings struct {
	format output.Format
}

// printer returns the printer for a command's results, with progress on stderr.
func (s *settings) printer(cmd *cobra.Command) *output.Printer {
	return output.New(s.format, cmd.OutOrStdout(), cmd.ErrOrStderr())
}

func newRoot() *cobra.Command {
	s := &settings{format: output.Human}
	root := &cobra.Command{
		Use:           "countinghouse",
		Short:         "Keeps every notification of an exchange, exactly once, without making trading wait",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().VarP(&s.format, "output", "o", `"table" for people, "json" for machines`)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return output.Exit(output.ExitUsage, err) })
	return root
}
