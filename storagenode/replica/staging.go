package replica

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
	"github.com/countinghouse/countinghouse/storagenode/store"
)

const (
	// stagingName is the directory of the one snapshot that is being received.
	stagingName = "staging"
	// stagedList is, in it, the head of the stream that its files are from.
	stagedList = "LIST"
	// stagingKept is how long what an interrupted transfer has brought is kept.
	stagingKept = 10 * time.Minute
)

// staging receives a snapshot into a directory. What an interrupted transfer has
// brought stays, also over a restart, for the next attempt. That one may be of a
// later snapshot: tables never change, so a file of the same path, size and CRC is
// the same.
type staging struct {
	s *snapshotStore

	busy sync.Mutex // held from stage until the release that it returns

	mu     sync.Mutex
	closed bool
	serial int
	token  string      // of what is complete and can be adopted, "" for nothing
	expiry *time.Timer // drops what was left

	// For who holds busy.
	checked map[string]streamFile // whole files on disk whose CRC was found right, by path
}

// unfinishedName reports whether a snapshot directory of that name is none.
func unfinishedName(name string) bool {
	return name == stagingName || strings.HasPrefix(name, tmpPrefix)
}

func (g *staging) path(elements ...string) string {
	return g.s.path(append([]string{stagingName}, elements...)...)
}

// stage receives the stream that r yields, of size bytes. After its head, want is
// called with what is here already, and r must go on with the rest. It returns a
// token with which adopt takes the snapshot, once, before release is called.
func (g *staging) stage(r io.Reader, size int64, want func(held []heldFile, size int64) error) (token []byte, release func(), err error) {
	g.busy.Lock()
	defer func() {
		if err != nil {
			g.expire(stagingKept)
			g.busy.Unlock()
		}
	}()
	g.claim()
	h, err := g.head(r, size)
	if err != nil {
		return nil, nil, err
	}
	held, have, err := g.hold(h)
	if err != nil {
		return nil, nil, err
	}
	if err := g.s.room(size - have); err != nil {
		return nil, nil, err
	}
	if err := want(held, have); err != nil {
		return nil, nil, err
	}
	if err := g.unpack(h, held, r); err != nil {
		return nil, nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serial++
	g.token = fmt.Sprintf("%s%d", tokenMagic, g.serial)
	return []byte(g.token), g.release, nil
}

// claim makes sure that nobody adopts or drops what is staged.
func (g *staging) claim() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.token = ""
	if g.expiry != nil {
		g.expiry.Stop()
		g.expiry = nil
	}
}

// expire drops what is staged after a time in which no other attempt came.
func (g *staging) expire(after time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return
	}
	g.expiry = time.AfterFunc(after, func() {
		if !g.busy.TryLock() {
			return // an attempt goes on with it
		}
		defer g.busy.Unlock()
		if err := g.drop(); err != nil {
			g.s.log.Warn("what was received of a snapshot stays until the next start", "dir", g.path(), "error", err)
		}
	})
}

// stop ends the waiting of expire, for good.
func (g *staging) stop() {
	g.claim()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
}

// release ends a transfer that was complete. What was not adopted is kept for a
// while: the leader's next attempt needs to send nothing of it.
func (g *staging) release() {
	g.claim()
	g.expire(stagingKept)
	g.busy.Unlock()
}

// adopt moves what the token stands for to a directory of its own.
func (g *staging) adopt(token []byte, name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.token == "" || string(token) != g.token {
		return errors.New(sinkTokenUsage)
	}
	g.token = ""
	return g.s.fs.Rename(g.path(), g.s.path(name))
}

// takeBack undoes adopt where what followed has failed, so that the next transfer
// goes on with what was received.
func (g *staging) takeBack(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.s.fs.Stat(g.path()); isNotExist(err) {
		if _, err := g.s.fs.Stat(g.s.path(name, stagedList)); err == nil {
			return g.s.fs.Rename(g.s.path(name), g.path())
		}
	}
	return g.s.fs.RemoveAll(g.s.path(name))
}

// drop removes everything that is staged. REQUIRES: busy held, or the start.
func (g *staging) drop() error {
	g.checked = nil
	return g.s.fs.RemoveAll(g.path())
}

// head reads the head of a stream and checks that it is for this member.
func (g *staging) head(r io.Reader, size int64) (*streamHeader, error) {
	h, n, err := readStreamHeader(r)
	if err != nil {
		return nil, err
	}
	if h.Cluster != g.s.cluster || h.Shard != g.s.shard {
		return nil, fmt.Errorf("snapshot of cluster %q shard %q: this node is of cluster %q shard %q", h.Cluster, h.Shard, g.s.cluster, g.s.shard)
	}
	for _, f := range h.Files {
		n += f.Size
	}
	if n != size {
		return nil, fmt.Errorf("snapshot stream: %w: files of %d bytes in a stream of %d", record.ErrCorrupt, n, size)
	}
	return h, nil
}

// hold returns what is staged of the snapshot, drops the rest, and notes whose
// files will be there.
func (g *staging) hold(h *streamHeader) (held []heldFile, size int64, err error) {
	before, err := g.before()
	if err != nil {
		return nil, 0, err
	}
	local, done := g.local()
	defer done()
	wanted := make(map[string]bool, len(h.Files))
	for i, f := range h.Files {
		if wanted[f.Path] {
			return nil, 0, fmt.Errorf("snapshot stream: %w: file %q is there twice", record.ErrCorrupt, f.Path)
		}
		wanted[f.Path] = true
		n, err := g.heldOf(f, before[f.Path] == f)
		if err == nil && n < f.Size && local.files[f.Path] == f {
			n, err = g.link(local.id, f)
		}
		if err != nil {
			return nil, 0, err
		}
		if n > 0 {
			held, size = append(held, heldFile{i, n}), size+n
		}
	}
	for name := range before {
		if !wanted[name] {
			if err := g.remove(name); err != nil {
				return nil, 0, err
			}
		}
	}
	return held, size, g.note(h)
}

// localTables are the tables of the member's own newest snapshot.
type localTables struct {
	id    string
	files map[string]streamFile
}

// local returns the tables that need not be sent because the member has them. They
// stay until done is called. A member that has found damage in its data is sent
// everything: what it has is not to be trusted.
func (g *staging) local() (tables localTables, done func()) {
	done = func() {}
	newest, err := g.s.newest()
	if err != nil || newest == nil || g.s.suspect() {
		return tables, done
	}
	id := newest.Raft.ID
	g.s.pin(id)
	listing, err := store.ReadListing(g.s.fs, g.s.path(id, dataDir))
	if err != nil {
		g.s.unpin(id)
		return tables, done
	}
	tables = localTables{id: id, files: make(map[string]streamFile, len(listing.Files))}
	for _, f := range listing.Files {
		if hasTableSuffix(f.Path) {
			tables.files[f.Path] = streamFile{Path: f.Path, Size: f.Size, CRC: f.CRC}
		}
	}
	return tables, func() { g.s.unpin(id) }
}

// link takes a table from the member's own snapshot: tables never change. Without it
// a member that is sent a snapshot while others go on would be sent the next one as
// a whole again, and never catch up.
func (g *staging) link(id string, f streamFile) (int64, error) {
	if err := g.remove(f.Path); err != nil {
		return 0, err
	}
	if err := g.s.fs.MkdirAll(g.s.fs.PathDir(g.file(f.Path)), dirMode); err != nil {
		return 0, err
	}
	if err := g.s.fs.Link(g.s.path(id, dataDir, filepath.FromSlash(f.Path)), g.file(f.Path)); err != nil {
		return 0, nil // it is sent, then
	}
	g.right(f)
	return f.Size, nil
}

// before returns the files that an earlier attempt was to bring, by path.
func (g *staging) before() (map[string]streamFile, error) {
	files := make(map[string]streamFile)
	content, err := readFile(g.s.fs, g.path(stagedList))
	if err == nil {
		var h *streamHeader
		if h, _, err = readStreamHeader(bytes.NewReader(content)); err == nil {
			for _, f := range h.Files {
				files[f.Path] = f
			}
			return files, nil
		}
	}
	if !isNotExist(err) {
		g.s.log.Warn("a transfer begins anew: what an earlier one has brought is not known", "error", err)
	}
	return files, g.drop()
}

// note makes h what before returns.
func (g *staging) note(h *streamHeader) error {
	if err := g.s.fs.MkdirAll(g.path(dataDir), dirMode); err != nil {
		return err
	}
	content, err := h.encode()
	if err != nil {
		return err
	}
	return replaceFile(g.s.fs, g.path(stagedList), content)
}

func (g *staging) file(name string) string { return g.path(dataDir, filepath.FromSlash(name)) }

func (g *staging) remove(name string) error {
	delete(g.checked, name)
	if err := g.s.fs.Remove(g.file(name)); err != nil && !isNotExist(err) {
		return err
	}
	return nil
}

// heldOf returns how many of a file's first bytes are staged. A file that is not
// from the same one is removed.
func (g *staging) heldOf(f streamFile, same bool) (int64, error) {
	info, err := g.s.fs.Stat(g.file(f.Path))
	switch {
	case isNotExist(err):
		return 0, nil
	case err != nil:
		return 0, err
	case same && (info.Size() < f.Size || g.checked[f.Path] == f):
		return info.Size(), nil
	case same && info.Size() == f.Size:
		right, err := g.check(f)
		if right || err != nil {
			return f.Size, err
		}
	}
	return 0, g.remove(f.Path)
}

// check reads a whole file, which another process may have written, and makes
// sure that it is on disk.
func (g *staging) check(f streamFile) (bool, error) {
	_, crc, err := fileCRC(g.s.fs, g.file(f.Path))
	if err != nil || crc != f.CRC {
		return false, err
	}
	w, err := g.s.fs.OpenReadWrite(g.file(f.Path), vfs.WriteCategoryUnspecified)
	if err != nil {
		return false, err
	}
	defer w.Close()
	if err := w.Sync(); err != nil {
		return false, err
	}
	g.right(f)
	return true, nil
}

func (g *staging) right(f streamFile) {
	if g.checked == nil {
		g.checked = make(map[string]streamFile)
	}
	g.checked[f.Path] = f
}

// unpack writes what is not held of the files, and checks everything. It is on
// disk then.
func (g *staging) unpack(h *streamHeader, held []heldFile, r io.Reader) error {
	fs, data := g.s.fs, g.path(dataDir)
	dirs := map[string]bool{data: true}
	for i, f := range h.Files {
		from := int64(0)
		if len(held) > 0 && held[0].file == i {
			from, held = held[0].bytes, held[1:]
		}
		if err := mkdirs(fs, data, fs.PathDir(g.file(f.Path)), dirs); err != nil {
			return err
		}
		if g.checked[f.Path] == f {
			continue
		}
		if err := g.unpackFile(f, from, r); err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := syncDir(fs, d); err != nil {
			return err
		}
	}
	known := func(f store.ListedFile) bool {
		return g.checked[f.Path] == streamFile{Path: f.Path, Size: f.Size, CRC: f.CRC}
	}
	if _, err := store.VerifyRest(fs, data, known); err != nil {
		return errors.Join(err, g.drop()) // another attempt would end the same way
	}
	return syncDir(fs, g.path())
}

// unpackFile appends what is not staged of a file. One whose CRC is wrong then is
// removed.
func (g *staging) unpackFile(f streamFile, from int64, r io.Reader) error {
	crc := crc32.New(record.Castagnoli)
	if err := g.write(f, from, io.TeeReader(r, crc), crc); err != nil {
		return fmt.Errorf("snapshot file %s: %w", f.Path, noEOF(err))
	}
	if crc.Sum32() != f.CRC {
		err := fmt.Errorf("snapshot file %s: %w: CRC32C is %08x, the header says %08x", f.Path, record.ErrCorrupt, crc.Sum32(), f.CRC)
		return errors.Join(err, g.remove(f.Path))
	}
	g.right(f)
	return nil
}

// write copies the rest of a file from r. What is staged of it goes into crc; the
// rest does as it is read, because a vfs.File may change the bytes that it is given.
func (g *staging) write(f streamFile, from int64, r io.Reader, crc io.Writer) error {
	w, err := g.s.fs.OpenReadWrite(g.file(f.Path), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.Copy(crc, io.NewSectionReader(w, 0, from)); err != nil {
		return err
	}
	buffer := make([]byte, min(f.Size-from, snapshotChunkBytes))
	for unsynced := int64(0); from < f.Size; {
		n, err := r.Read(buffer[:min(f.Size-from, int64(len(buffer)))])
		if n > 0 {
			if _, err := w.WriteAt(buffer[:n], from); err != nil {
				return err
			}
			from += int64(n)
			unsynced += int64(n)
		}
		if unsynced >= unsyncedBytesMax { // one sync of all of it could look like a disk that hangs
			if err := w.SyncData(); err != nil {
				return err
			}
			unsynced = 0
		}
		if err != nil && from < f.Size {
			return err
		}
	}
	return w.Sync()
}

// room refuses what would take the disk's reserve.
func (s *snapshotStore) room(size int64) error {
	usage, err := s.fs.GetDiskUsage(s.dir)
	if err != nil || s.reserve <= 0 {
		return nil // without a figure it is tried
	}
	if free := int64(usage.AvailBytes); size > free-s.reserve {
		return refusal.New(storagepb.Code_CODE_DISK_FULL,
			"a snapshot needs %d bytes more; %d are free, of which %d are kept in reserve: give the member a larger disk", size, free, s.reserve)
	}
	return nil
}
