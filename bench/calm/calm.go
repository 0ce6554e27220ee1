// Package calm waits for the end of what goes on behind a measurement.
package calm

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	pause = 20 * time.Millisecond
	still = 20 // pauses in a row without a write
)

// AwaitWrites returns when this process has written nothing to the disk for 0.4 s:
// stores do not say when they have nothing left to merge.
func AwaitWrites(ctx context.Context) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	last := int64(-1)
	for calm := 0; calm < still; calm++ {
		n, err := written()
		if err != nil {
			return err
		}
		if n != last {
			last, calm = n, 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// written returns how many bytes this process has sent to the disk, ever.
func written() (int64, error) {
	f, err := os.Open("/proc/self/io")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "write_bytes: "); ok {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no write_bytes", f.Name())
}
