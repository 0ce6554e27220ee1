package binaries

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Another go.mod has other binaries: none are left over from an older one.
func TestDirectoryFollowsThePin(t *testing.T) {
	root := t.TempDir()
	read := func(text string) (pinned, error) {
		path := filepath.Join(root, modFile)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return readPin(root)
	}
	const text = "module m\nrequire (\n\tk8s.io/api v0.1.2\n\tk8s.io/kubernetes v1.34.4 // indirect\n)\n"
	a, err := read(text)
	if err != nil || a.version != "1.34.4" || a.major != "1" || a.minor != "34" {
		t.Fatalf("%+v %v", a, err)
	}
	if name := filepath.Base(a.dir); !strings.HasPrefix(name, "v1.34.4-") || len(name) != len("v1.34.4-01234567") {
		t.Errorf("directory %s", name)
	}
	if b, err := read(text + "\n"); err != nil || b.dir == a.dir {
		t.Errorf("%s for both: %v", b.dir, err)
	}
	if _, err := read("module m\n"); err == nil || !strings.Contains(err.Error(), modFile) {
		t.Errorf("got %v", err)
	}
}

// A build that fails says why, and leaves nothing that passes for a binary.
func TestFailedBuildSaysWhy(t *testing.T) {
	var said strings.Builder
	pin := pinned{version: "1.34.4", major: "1", minor: "34", dir: filepath.Join(t.TempDir(), "out")}
	err := build(t.Context(), t.TempDir(), pin, Etcd, &said)
	if err == nil || !strings.Contains(err.Error(), "build etcd") || !strings.Contains(err.Error(), "go: ") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(said.String(), "building etcd") {
		t.Errorf("said %q", said.String())
	}
	if _, err := os.Stat(filepath.Join(pin.dir, Etcd)); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}
