package directio

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"golang.org/x/sys/unix"
)

func create(t *testing.T, fs vfs.FS) (Writer, string, vfs.File) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return NewWriter(f), name, f
}

func flags(t *testing.T, f vfs.File) int {
	t.Helper()
	n, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Pieces of all lengths, aligned and not, must read back as one.
func TestWhatIsWrittenIsRead(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		w, name, _ := create(t, vfs.Default)
		var want []byte
		for i := range 1 + rnd.IntN(8) {
			p := Buffer(Align * (1 + rnd.IntN(64)))
			if i > 2 && rnd.IntN(3) == 0 {
				p = p[:1+rnd.IntN(len(p))]
			}
			for j := range p {
				p[j] = byte(rnd.Uint32())
			}
			if n, err := w.Write(p); err != nil || n != len(p) {
				t.Fatalf("%d bytes: %d, %v", len(p), n, err)
			}
			want = append(want, p...)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d bytes, wrote %d: %v", len(got), len(want), err)
		}
	}
}

func TestAnUnalignedWriteLeavesDirect(t *testing.T) {
	for name, write := range map[string]func(w *Writer) error{
		"length":  func(w *Writer) error { _, err := w.Write(Buffer(Align + 1)); return err },
		"address": func(w *Writer) error { _, err := w.Write(Buffer(2 * Align)[8 : Align+8]); return err },
		"offset":  func(w *Writer) error { _, err := w.WriteAt(Buffer(Align), 512+8); return err },
	} {
		w, _, f := create(t, vfs.Default)
		if w.Direct() != (flags(t, f)&unix.O_DIRECT != 0) { // not every file system has it
			t.Errorf("%s: direct %t, flags %#x", name, w.Direct(), flags(t, f))
		}
		if err := write(&w); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if w.Direct() || flags(t, f)&unix.O_DIRECT != 0 {
			t.Errorf("%s: still direct", name)
		}
	}
}

// Some file systems take the flag and refuse the write.
func TestARefusedWriteGoesThroughTheCache(t *testing.T) {
	refusals := 0
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWrite && refusals == 0 {
			refusals++
			return &os.PathError{Op: "write", Err: unix.EINVAL}
		}
		return nil
	}))
	w, name, _ := create(t, fs)
	w.direct = true // errorfs need not hand the descriptor on
	p := bytes.Repeat([]byte{7}, Align)
	b := Buffer(Align)
	copy(b, p)
	if n, err := w.Write(b); n != Align || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if w.Direct() || refusals != 1 {
		t.Errorf("direct %t after %d refusals", w.Direct(), refusals)
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, p) {
		t.Errorf("read %d bytes: %v", len(got), err)
	}
}

func TestAFileInMemoryIsWrittenAsItIs(t *testing.T) {
	fs := vfs.NewMem()
	f, err := fs.Create("f", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	w := NewWriter(f)
	if w.Direct() {
		t.Error("direct")
	}
	if n, err := w.Write(Buffer(Align)); n != Align || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestBuffersAreAligned(t *testing.T) {
	for _, n := range []int{1, 8, Align - 1, Align, 3*Align + 5, 1 << 20} {
		b := Buffer(n)
		if len(b) != n || cap(b) != n || uintptr(unsafe.Pointer(&b[0]))%Align != 0 {
			t.Errorf("%d: len %d cap %d at %p", n, len(b), cap(b), &b[0])
		}
	}
}
