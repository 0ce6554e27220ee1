// Command kubectl-countinghouse is a kubectl plugin: on the PATH it is "kubectl
// countinghouse". It shows shards and what the operator does with them, says what a
// change would do, and carries out what only a person may decide.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, newRoot(connect))
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "kubectl countinghouse: %v\n", err)
	}
	os.Exit(output.ExitCode(err))
}

// run executes the command line. What goes wrong before a command's own work
// begins lies in the words of its call.
func run(ctx context.Context, root *cobra.Command) error {
	begun := false
	for _, cmd := range root.Commands() {
		work := cmd.RunE
		if work == nil {
			continue
		}
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			begun = true
			return work(cmd, args)
		}
	}
	err := root.ExecuteContext(ctx)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled):
		return output.Exit(output.ExitInterrupted, errors.New("interrupted"))
	case begun:
		return err
	}
	return output.Exit(output.ExitUsage, err)
}

// settings are the flags that every command takes.
type settings struct {
	format    output.Format
	timeout   time.Duration
	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
	connect   func(*settings) (*session, error)
}

const timeoutDefault = 5 * time.Second

func newRoot(connect func(*settings) (*session, error)) *cobra.Command {
	s := &settings{format: output.Human, rules: clientcmd.NewDefaultClientConfigLoadingRules(), connect: connect}
	root := &cobra.Command{
		Use:   "kubectl-countinghouse",
		Short: "Look at shards, plan changes to them, and decide what only a person may",
		Long: "Look at shards, plan changes to them, and decide what only a person may.\n\n" +
			"Members are asked through the API server, by port-forward: that takes the right to create pods/portforward.\n\n" +
			"Exit codes: 0 all is well; 1 the work was done, and something is wrong; 2 the command's words or a file it\n" +
			"was given are wrong; 3 the API server or a member does not answer; 130 interrupted.",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl countinghouse"},
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	fs := root.PersistentFlags()
	fs.VarP(&s.format, "output", "o", `"table" for people, "json" for machines`)
	fs.DurationVar(&s.timeout, "timeout", timeoutDefault, "how long a member has to answer a question")
	fs.StringVar(&s.rules.ExplicitPath, "kubeconfig", "", "path of the kubeconfig file (default: as kubectl does)")
	clientcmd.BindOverrideFlags(&s.overrides, fs, clientcmd.RecommendedConfigOverrideFlags(""))
	root.AddCommand(newStatus(s), newPlan(s), newTransfer(s), newVerify(s), newRecover(s))
	return root
}

// printer returns the printer for a command's results, with progress on stderr.
func (s *settings) printer(cmd *cobra.Command) *output.Printer {
	return output.New(s.format, cmd.OutOrStdout(), cmd.ErrOrStderr())
}
