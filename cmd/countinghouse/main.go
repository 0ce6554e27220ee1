// Command countinghouse is the project's command line: a demonstration that
// proves its own result, replays of recorded order flow, a local cluster to try
// things on, and tools that read and check what is stored.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/carrier"
	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/storagenode/node"
	"github.com/countinghouse/countinghouse/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, newRoot())
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "countinghouse: %v\n", err)
	}
	os.Exit(output.ExitCode(err))
}

// run executes the command line. What goes wrong before a command's own work
// begins lies in the words of its call.
func run(ctx context.Context, root *cobra.Command) error {
	begun := false
	markBegun(root, &begun)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil && canceled(err) {
		return output.Exit(output.ExitInterrupted, errors.New("interrupted"))
	}
	if begun {
		return err
	}
	return output.Exit(output.ExitUsage, err)
}

// canceled reports whether work ended because its context did.
func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

func markBegun(cmd *cobra.Command, begun *bool) {
	if work := cmd.RunE; work != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*begun = true
			return work(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markBegun(sub, begun)
	}
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
		Use:   "countinghouse",
		Short: "Keeps every notification of an exchange, exactly once, without making trading wait",
		Long: "Keeps every notification of an exchange, exactly once, without making trading wait.\n\n" +
			"Exit codes: 0 all is well; 1 the work was done, and something is wrong, such as a lost record;\n" +
			"2 the command's words or a file it was given are wrong; 3 a server does not answer; 130 interrupted.",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().VarP(&s.format, "output", "o", `"table" for people, "json" for machines`)
	root.AddCommand(newTorture(s))
	root.AddCommand(newScan(s), newGet(s), newTail(s), newStats(s), newVerify(s), newRecover(s), newCluster(s), newDemo(s), newReplay(s), newProbe(s), carrier.Command(), newNode())
	return root
}

// newNode returns the command by which this program runs itself as a storage
// node of a local cluster.
func newNode() *cobra.Command {
	cmd := node.Command()
	cmd.Use, cmd.Hidden = "node", true
	return cmd
}
