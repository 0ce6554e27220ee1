package outbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	cursorMagic    = "CHOUTCUR"
	cursorPrefix   = "cursor-"
	cursorLockName = "LOCK.cursors"
	cursorA        = 64
	cursorB        = 128
	cursorNameMax  = 64
)

// Cursor is a reader's durable place: it is done with everything up to Global.
type Cursor struct {
	Name   string
	Global uint64
}

func cursorPath(dir, name string) string { return filepath.Join(dir, cursorPrefix+name) }

// checkCursorName keeps names that are files in one directory.
func checkCursorName(name string) error {
	ok := name != "" && len(name) <= cursorNameMax
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fmt.Errorf("outbox: cursor name %q: use 1 to %d letters, digits, '-', '_' and '.'", name, cursorNameMax)
	}
	return nil
}

func cursorCheck(v uint64) uint64 { return bits.RotateLeft64(v*weight0, 29) ^ checkSalt }

func encodeCursor(global uint64) []byte {
	page := make([]byte, pageBytes)
	copy(page, cursorMagic)
	binary.LittleEndian.PutUint32(page[8:], formatVersion)
	for _, off := range []int{cursorA, cursorB} {
		binary.LittleEndian.PutUint64(page[off:], global)
		binary.LittleEndian.PutUint64(page[off+8:], cursorCheck(global))
	}
	return page
}

// decodeCursor returns the higher whole value.
func decodeCursor(page []byte) (uint64, error) {
	if string(page[:8]) != cursorMagic {
		return 0, fmt.Errorf("%w: offset 0: magic %q, not %q", ErrDamaged, page[:8], cursorMagic)
	}
	if v := binary.LittleEndian.Uint32(page[8:]); v > formatVersion {
		return 0, fmt.Errorf("offset 8: %w %d (this build reads version %d)", ErrVersion, v, formatVersion)
	}
	best, found := uint64(0), false
	for _, off := range []int{cursorA, cursorB} {
		v := word64(page, off).Load()
		if wholeCursor(page, off) && (!found || v > best) {
			best, found = v, true
		}
	}
	if !found {
		return 0, fmt.Errorf("%w: neither of its two values, at offsets %d and %d, is whole; remove the file and the reader starts at the oldest record kept",
			ErrDamaged, cursorA, cursorB)
	}
	return best, nil
}

// wholeCursor reports whether the value at off has its check word.
func wholeCursor(page []byte, off int) bool {
	return word64(page, off+8).Load() == cursorCheck(word64(page, off).Load())
}

// cursorLooks is how often a cursor is looked at that seems damaged. While its
// reader moves it, a look may fall into the write of the one value, and then of
// the other one.
const cursorLooks = 5

func readCursor(dir, name string) (v uint64, err error) {
	path := cursorPath(dir, name)
	for look := 0; look < cursorLooks; look++ {
		var page []byte
		if page, err = readPage(path); err != nil {
			return 0, err
		}
		if v, err = decodeCursor(page); err == nil {
			return v, nil
		}
	}
	return 0, fmt.Errorf("outbox: %s: %w", path, err)
}

// ListCursors returns the cursors of the outbox in dir, in order of name. It
// fails on the first that can not be read.
func ListCursors(dir string) ([]Cursor, error) {
	names, err := cursorNames(dir)
	if err != nil {
		return nil, err
	}
	var cursors []Cursor
	for _, name := range names {
		v, err := readCursor(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		cursors = append(cursors, Cursor{Name: name, Global: v})
	}
	return cursors, nil
}

// cursorNames returns the names of the cursors in dir, in order.
func cursorNames(dir string) ([]string, error) {
	entries, err := readDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), cursorPrefix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// RemoveCursor deletes a cursor whose reader will not come back, so that it no
// longer holds segments. It returns ErrCursorInUse while a reader has it open.
func RemoveCursor(dir, name string) error {
	if err := checkCursorName(name); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(dir, cursorLockName))
	if err != nil {
		return err
	}
	defer lock.Close()
	f, err := holdCursor(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := remove(f.Name()); err != nil {
		return fmt.Errorf("outbox: %w", err)
	}
	return nil
}

// holdCursor opens a cursor's file and takes its lock.
func holdCursor(dir, name string) (*os.File, error) {
	f, err := openFile(cursorPath(dir, name), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("outbox %s: cursor %q: %w", dir, name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	ok, err := tryLock(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("outbox: lock %s: %w", f.Name(), err)
	}
	if !ok {
		f.Close()
		return nil, fmt.Errorf("outbox: %s: %w by another reader", cursorPath(dir, name), ErrCursorInUse)
	}
	return f, nil
}

// ensureCursor creates a cursor before the oldest record kept, unless it exists.
// The caller holds the cursor lock, so that no segment goes away meanwhile.
func ensureCursor(dir, name string, h *header) error {
	if err := checkCursorName(name); err != nil {
		return err
	}
	path := cursorPath(dir, name)
	if err := stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	numbers, err := listSegments(dir)
	if err != nil {
		return err
	}
	oldest := h.base
	if len(numbers) > 0 {
		oldest = h.first(numbers[0]) - 1
	}
	return writeWhole(path, encodeCursor(oldest))
}

// openCursor is a cursor that this process holds.
type openCursor struct {
	file  *os.File
	data  []byte
	value uint64
	turn  bool // which of the two values is written next
}

func mapCursor(f *os.File) (*openCursor, error) {
	data, err := mapFile(f, pageBytes, unix.PROT_READ|unix.PROT_WRITE, 0)
	if err != nil {
		return nil, err
	}
	v, err := decodeCursor(data)
	if err != nil {
		unmap(data)
		return nil, fmt.Errorf("outbox: %s: %w", f.Name(), err)
	}
	c := &openCursor{file: f, data: data, value: v}
	// The first write must hit the value that is not the valid one.
	c.turn = word64(data, cursorA).Load() == v && word64(data, cursorA+8).Load() == cursorCheck(v)
	return c, nil
}

func (c *openCursor) set(global uint64) {
	off := cursorA
	if c.turn {
		off = cursorB
	}
	storing(stepCursor)
	word64(c.data, off).Store(global)
	storing(stepCursorCheck)
	word64(c.data, off+8).Store(cursorCheck(global))
	c.turn, c.value = !c.turn, global
}

func (c *openCursor) close() error {
	unmap(c.data)
	return c.file.Close()
}

// CursorView follows a cursor that another reader moves, also one in another
// process. Its methods may be called from anywhere.
type CursorView struct {
	page    []byte
	highest atomic.Uint64 // that was seen
}

// ViewCursor opens a view of a cursor, which must exist. Only a writer that opens
// the outbox anew puts another file in its place; the view does not follow that.
func ViewCursor(dir, name string) (*CursorView, error) {
	path := cursorPath(filepath.Clean(dir), name)
	page, err := mapPath(path, pageBytes, unix.PROT_READ, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("outbox %s: cursor %q: %w", dir, name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if _, err := decodeCursor(page); err != nil {
		unmap(page)
		return nil, fmt.Errorf("outbox: %s: %w", path, err)
	}
	v := &CursorView{page: page}
	v.Global()
	runtime.AddCleanup(v, unmap, page)
	return v, nil
}

// Global returns the last global that the reader is done with, as far as can be
// seen; it may be one step behind, as the reader itself after a restart.
func (v *CursorView) Global() uint64 {
	for range cursorLooks {
		if global, err := decodeCursor(v.page); err == nil {
			v.raise(global)
			break
		}
	}
	return v.highest.Load()
}

func (v *CursorView) raise(global uint64) {
	for seen := v.highest.Load(); global > seen; seen = v.highest.Load() {
		if v.highest.CompareAndSwap(seen, global) {
			return
		}
	}
}
