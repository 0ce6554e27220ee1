package replica

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

// What a data directory holds.
const (
	identityFile = "IDENTITY"
	lockFile     = "LOCK"
	currentFile  = "CURRENT"
	ballastFile  = "BALLAST"
	stableFile   = "stable.db"
	recoveryFile = "RECOVERY"
	boltLogFile  = "log.db"
	walDir       = "wal"
	snapshotsDir = "snapshots"
	storePrefix  = "store-"
)

func readFile(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// writeFileSync creates a file with the given content and syncs it.
func writeFileSync(fs vfs.FS, name string, content []byte) error {
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.Write(content)
	if err == nil && n < len(content) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.Sync()
}

// replaceFile gives a file the content, all of it or, after a crash, none.
func replaceFile(fs vfs.FS, name string, content []byte) error {
	if err := writeFileSync(fs, name+".tmp", content); err != nil {
		return err
	}
	if err := fs.Rename(name+".tmp", name); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(name))
}

// currentStore returns the name of the directory of the live store, "" if there
// is none yet. A restored snapshot becomes live by one replacement of CURRENT.
func currentStore(fs vfs.FS, dataDir string) (string, error) {
	b, err := readFile(fs, fs.PathJoin(dataDir, currentFile))
	if isNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(b))
	if !strings.HasPrefix(name, storePrefix) || strings.ContainsAny(name, "/\\") {
		return "", fmt.Errorf("%s: %q is not the name of a store", fs.PathJoin(dataDir, currentFile), name)
	}
	if _, err := fs.Stat(fs.PathJoin(dataDir, name)); err != nil {
		return "", fmt.Errorf("%s: %w: it names %s, which is not there (%w): replace the member",
			fs.PathJoin(dataDir, currentFile), record.ErrCorrupt, name, err)
	}
	return name, nil
}

// checkNoStore is called where CURRENT is missing. A crash of the first start can
// leave an empty store without it; a store that was used was named, and to begin
// another one would drop its records.
func checkNoStore(fs vfs.FS, dataDir string) error {
	names, err := fs.List(dataDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, storePrefix) {
			continue
		}
		used, err := store.Used(fs, fs.PathJoin(dataDir, name))
		if used && err == nil {
			err = fmt.Errorf("%s holds records", name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: it is missing, and %w: replace the member", fs.PathJoin(dataDir, currentFile), record.ErrCorrupt, err)
		}
	}
	return nil
}

// seal ends a text file with a line that holds the CRC32C of what is before it.
func seal(content []byte) []byte {
	return fmt.Appendf(content, "\ncrc32c %08x\n", crc32.Checksum(content, record.Castagnoli))
}

// unseal returns what seal was given. Errors wrap record.ErrCorrupt.
func unseal(name string, sealed []byte) ([]byte, error) {
	i := bytes.LastIndex(sealed, []byte("\ncrc32c "))
	if i < 0 || string(sealed) != string(seal(sealed[:i:i])) {
		return nil, fmt.Errorf("%s: %w: the checksum in its last line does not fit", name, record.ErrCorrupt)
	}
	return sealed[:i], nil
}

// storeAfter returns the name of the store that follows name.
func storeAfter(name string) string {
	n := 0
	if name != "" {
		_, _ = fmt.Sscanf(name, storePrefix+"%d", &n) // 0 if it is none of ours
	}
	return fmt.Sprintf("%s%06d", storePrefix, n+1)
}

// dropOtherStores removes what is left of stores that are not live.
func dropOtherStores(fs vfs.FS, dataDir, live string) error {
	names, err := fs.List(dataDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, storePrefix) && name != live {
			if err := fs.RemoveAll(fs.PathJoin(dataDir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
