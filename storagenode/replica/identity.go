package replica

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FormatVersion is the version of the data directory's layout that this build
// writes and reads.
const FormatVersion = 1

// Identity binds a data directory to one member of one shard of one cluster. It
// is written once, and sealed.
type Identity struct {
	Format   int       `json:"format"`
	Cluster  string    `json:"cluster"`
	Shard    string    `json:"shard"`
	ID       string    `json:"id"`
	LogStore LogStore  `json:"log_store"`
	Created  time.Time `json:"created"`
	// Peers are the voters that the shard began with; empty for a member that
	// joined later.
	Peers []Peer `json:"peers,omitempty"`
}

// Errors of Open that callers may want to tell apart.
var (
	// ErrLocked means that another process uses the data directory.
	ErrLocked = errors.New("data directory is in use by another process")
	// ErrIdentity means that the data directory belongs to another member.
	ErrIdentity = errors.New("data directory belongs to another member")
	// ErrFormat means that a newer build wrote the data directory.
	ErrFormat = errors.New("data directory has a newer format")
)

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

// lockDataDir creates the directory if need be and locks it.
func lockDataDir(fs vfs.FS, dir string) (io.Closer, error) {
	if err := makeDurableDir(fs, dir); err != nil {
		return nil, fmt.Errorf("data directory %s: %w", dir, err)
	}
	lock, err := fs.Lock(fs.PathJoin(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: stop it, or choose another --data-dir (%w)", dir, ErrLocked, err)
	}
	return lock, nil
}

// makeDurableDir creates the directory and those above it that are missing, and
// makes their names durable: a member whose data directory vanishes in a power
// failure comes back as an empty one under its old id, without its log and vote.
func makeDurableDir(fs vfs.FS, dir string) error {
	parent := fs.PathDir(dir)
	_, err := fs.Stat(dir)
	switch {
	case err == nil:
		// Whoever made it may have lost power before its name was durable. Above a
		// mount point, where nothing needs to be done, reading may be forbidden.
		if err := syncDir(fs, parent); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
		return nil
	case !isNotExist(err):
		return err
	}
	if parent != dir {
		if err := makeDurableDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

// ReadIdentity returns the identity of a data directory; the error matches
// os.ErrNotExist if it has none.
func ReadIdentity(fs vfs.FS, dir string) (Identity, error) {
	var id Identity
	name := fs.PathJoin(dir, identityFile)
	b, err := readFile(fs, name)
	if err != nil {
		return id, err
	}
	if b, err = unseal(name, b); err != nil {
		return id, fmt.Errorf("%w: restore the file from another copy of the directory, or replace the member", err)
	}
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("%s: not readable: %w: restore the file from another copy of the directory", name, err)
	}
	if id.Format > FormatVersion {
		return id, fmt.Errorf("%s: %w: %d, this build knows %d: use the newer build", name, ErrFormat, id.Format, FormatVersion)
	}
	return id, nil
}

// claim checks that the directory is the member's, or makes it so if it is empty.
// It reports whether the directory was empty.
func claim(fs vfs.FS, dir string, want Identity) (fresh bool, err error) {
	got, err := ReadIdentity(fs, dir)
	switch {
	case isNotExist(err):
		if err := refuseForeignFiles(fs, dir); err != nil {
			return false, err
		}
		return true, writeIdentity(fs, dir, want)
	case err != nil:
		return false, err
	}
	return false, got.match(dir, want)
}

func (id Identity) match(dir string, want Identity) error {
	for _, f := range []struct{ name, flag, got, want string }{
		{"cluster", "--cluster", id.Cluster, want.Cluster},
		{"shard", "--shard", id.Shard, want.Shard},
		{"member id", "--id", id.ID, want.ID},
		{"log store", "--log-store", string(id.LogStore), string(want.LogStore)},
	} {
		if f.got != f.want {
			return fmt.Errorf("%s: %w: its %s is %q, not %q: correct %s or --data-dir", dir, ErrIdentity, f.name, f.got, f.want, f.flag)
		}
	}
	return nil
}

// refuseForeignFiles keeps a mistyped --data-dir from being filled with ours.
func refuseForeignFiles(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != lockFile && name != identityFile+".tmp" {
			return fmt.Errorf("%s: not empty (%s) and no %s file in it: choose an empty --data-dir", dir, name, identityFile)
		}
	}
	return nil
}

func writeIdentity(fs vfs.FS, dir string, id Identity) error {
	id.Format, id.Created = FormatVersion, time.Now().UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(fs, fs.PathJoin(dir, identityFile), seal(b))
}
