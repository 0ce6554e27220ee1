package store

import (
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
)

const (
	shardFile      = "SHARD"
	manifestFile   = "MANIFEST"
	lockFile       = "LOCK"
	instrumentsDir = "instruments"
	tableSuffix    = ".sst"
	tempSuffix     = ".tmp"
)

// dirName returns the name of an instrument's directory. The two characters of
// symbols that mean something to a file system are written as %2F and %2E;
// symbols have no '%' of their own.
func dirName(sym record.Symbol) string {
	name := strings.ReplaceAll(sym.String(), "/", "%2F")
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name
}

// symbolOf is the inverse of dirName.
func symbolOf(dir string) (record.Symbol, error) {
	sym, err := record.MakeSymbol(strings.NewReplacer("%2F", "/", "%2E", ".").Replace(dir))
	if err == nil && dirName(sym) != dir {
		err = fmt.Errorf("not the name of an instrument's directory")
	}
	return sym, err
}

// tableName returns the name of the table of the given seqs. Two tables of an
// instrument never have the same: flushes go upwards, a merge spans more than
// each of its parts.
func tableName(first, last uint64) string {
	return fmt.Sprintf("%020d-%020d%s", first, last, tableSuffix)
}

func instrumentPath(fs vfs.FS, dir string, sym record.Symbol) string {
	return fs.PathJoin(dir, instrumentsDir, dirName(sym))
}
