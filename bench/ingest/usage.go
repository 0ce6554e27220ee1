package ingest

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what this process has used since it began.
type usage struct {
	processor time.Duration // in the kernel, too
	written   int64         // bytes that have to go to a disk; 0 where the kernel does not count them
}

// usageNow leaves what the system does not tell at zero.
func usageNow() usage {
	var u usage
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) == nil {
		u.processor = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	if b, err := os.ReadFile("/proc/self/io"); err == nil {
		u.written = ioField(b, "write_bytes: ")
	}
	return u
}

func ioField(b []byte, name string) int64 {
	for line := range bytes.Lines(b) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			n, _ := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64) // 0 where it is none
			return n
		}
	}
	return 0
}

func (u usage) since(before usage) usage {
	return usage{processor: u.processor - before.processor, written: u.written - before.written}
}
