package replica

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

// A data directory that a power failure takes away would come back as that of an
// empty member under the same id.
func TestDataDirSurvivesAPowerFailure(t *testing.T) {
	for _, dir := range []string{"data", "a/b/data", "/x/data"} {
		fs := vfs.NewCrashableMem()
		lock, err := lockDataDir(fs, dir)
		if err != nil {
			t.Fatal(err)
		}
		want := Identity{Cluster: "c", Shard: "s", ID: "m"}
		if _, err := claim(fs, dir, want); err != nil {
			t.Fatal(err)
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		lock.Close()
		got, err := ReadIdentity(after, dir)
		if err != nil || got.ID != "m" {
			t.Errorf("%s: after a power failure: %+v, %v", dir, got, err)
		}
	}
}

// A directory that exists may have been made by a start that lost power before
// its name was durable.
func TestExistingDataDirIsMadeDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("a/data", dirMode); err != nil {
		t.Fatal(err)
	}
	if err := syncDir(fs, "/"); err != nil {
		t.Fatal(err)
	}
	lock, err := lockDataDir(fs, "a/data")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := fs.CrashClone(vfs.CrashCloneCfg{}).Stat("a/data"); err != nil {
		t.Error(err)
	}
}

// Every flipped bit is noticed: a changed name would make the directory another
// member's.
func TestIdentityIsSealed(t *testing.T) {
	fs := vfs.NewMem()
	want := Identity{Cluster: "c", Shard: "s", ID: "m", LogStore: LogStoreWAL, Peers: []Peer{{"m", "h:1"}}}
	if err := writeIdentity(fs, "", want); err != nil {
		t.Fatal(err)
	}
	good, err := readFile(fs, identityFile)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadIdentity(fs, ""); err != nil || got.ID != "m" || got.Peers[0] != want.Peers[0] {
		t.Fatalf("%+v, %v", got, err)
	}
	for bit := range len(good) * 8 {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		if err := writeFileSync(fs, identityFile, b); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadIdentity(fs, ""); !errors.Is(err, record.ErrCorrupt) {
			t.Fatalf("bit %d: %v", bit, err)
		}
	}
}
