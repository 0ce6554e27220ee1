package node

import (
	"context"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/countinghouse/countinghouse/version"
)

// Command returns the command that runs a node until SIGTERM or SIGINT.
func Command() *cobra.Command {
	var c Config
	cmd := &cobra.Command{
		Use:   "storagenode",
		Short: "Run one storage node: a member of a shard",
		Long: "Run one storage node: a member of a shard.\n\n" +
			"It prints one line with its address when it is ready for calls, and logs to standard error.\n" +
			"On SIGTERM or SIGINT it hands leadership over and stops.",
		Args:          cobra.NoArgs,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			makeRoomForWriters()
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			c.ready = cmd.OutOrStdout()
			c.log = cmd.ErrOrStderr()
			return Run(ctx, c)
		},
	}
	c.Bind(cmd.Flags())
	return cmd
}

// Execute runs the command and returns the process's exit code.
func Execute(ctx context.Context, args []string) int {
	cmd := Command()
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(ctx); err != nil {
		cmd.PrintErrln("storagenode:", err)
		return 1
	}
	return 0
}
