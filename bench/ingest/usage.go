package ingest

import (
	"time"

	"golang.org/x/sys/unix"
)

// processorTime returns what this process has used, in the kernel, too; 0 where the
// system does not tell.
func processorTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
