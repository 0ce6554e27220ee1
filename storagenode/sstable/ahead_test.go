package sstable

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

// Wherever a reader begins and ends, it asks for each block before it needs it, for none
// behind the end, and is never more than a window ahead.
func TestAheadLeavesNoBlockOut(t *testing.T) {
	for first := range 3 * aheadBlocks {
		for end := first + 1; end < first+4*aheadBlocks; end++ {
			asked := first
			for i := first; i < end; i++ {
				from, to := ahead(i, end, i == first)
				if from < to && (from > asked || to > end) {
					t.Fatalf("blocks %d to %d: at %d it asks for %d to %d after %d", first, end, i, from, to, asked)
				}
				if from < to {
					asked = max(asked, to)
				}
				if i >= asked || asked > i+aheadBlocks {
					t.Fatalf("blocks %d to %d: at %d what is before %d was asked for", first, end, i, asked)
				}
			}
		}
	}
}

func TestBlockAheadIsBlock(t *testing.T) {
	eachFS(t, func(t *testing.T, fs vfs.FS, dir string) {
		rs := flow(1, 70*BlockRecords+5)
		write(t, fs, dir, "a.sst", rs)
		for _, first := range []int{0, 1, 15, 33, 70} {
			for _, end := range []int{first + 1, 20, 71, 1000} { // also behind the last, and before the first
				table := open(t, fs, fs.PathJoin(dir, "a.sst"))
				for i := first; i < table.Blocks(); i++ {
					got, err := table.BlockAhead(i, end)
					if want := rs[i*BlockRecords : min(len(rs), (i+1)*BlockRecords)]; err != nil || !slices.Equal(got, want) {
						t.Fatalf("block %d of %d to %d: %d records, %v", i, first, end, len(got), err)
					}
				}
			}
		}
	})
}

// What is asked for ahead is checked where it is read, as everything is.
func TestDamageAheadIsNoticedAtItsBlock(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.sst")
	write(t, vfs.Default, dir, "a.sst", flow(1, 40*BlockRecords))
	b := readFile(t, vfs.Default, path)
	b[20*BlockSize+777] ^= 1
	writeFile(t, vfs.Default, path, b)
	table := open(t, vfs.Default, path)
	for i := range table.Blocks() {
		rs, err := table.BlockAhead(i, table.Blocks())
		var c *CorruptError
		switch {
		case i != 20 && (err != nil || len(rs) != BlockRecords):
			t.Errorf("block %d: %d records, %v", i, len(rs), err)
		case i == 20 && (!errors.As(err, &c) || c.Block != 20 || !errors.Is(err, record.ErrCorrupt) || rs != nil):
			t.Errorf("block %d: %d records, %v", i, len(rs), err)
		}
	}
}
