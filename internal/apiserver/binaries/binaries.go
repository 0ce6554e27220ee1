// Package binaries builds a Kubernetes API server and etcd from Go modules: what
// tools/kubernetes/go.mod pins, nothing is downloaded but through the Go module
// proxy.
package binaries

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of the binaries, in the directory that Build returns.
const (
	APIServer = "kube-apiserver"
	Etcd      = "etcd"
)

const (
	modFile = "tools/kubernetes/go.mod"
	outDir  = "bin/kube"
)

var (
	kubernetes = regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)`)
	packages   = map[string]string{APIServer: "k8s.io/kubernetes/cmd/kube-apiserver", Etcd: "go.etcd.io/etcd/server/v3"}
)

// pinned is what go.mod asks for.
type pinned struct {
	version, major, minor string // of Kubernetes, such as 1.34.4, 1, 34
	dir                   string // of the binaries; another go.mod has another one
}

// Build returns the directory that has the binaries, below bin/ of the repository
// that the working directory is in. Those that are missing are built, which takes
// minutes the first time; progress says so. One process builds at a time, others
// wait for it.
func Build(ctx context.Context, progress io.Writer) (dir string, err error) {
	root, err := Repository(ctx)
	if err != nil {
		return "", err
	}
	pin, err := readPin(root)
	if err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(root, outDir))
	if err != nil {
		return "", err
	}
	defer unlock()
	for _, name := range []string{Etcd, APIServer} {
		if err := build(ctx, root, pin, name, progress); err != nil {
			return "", err
		}
	}
	return pin.dir, nil
}

// Repository returns the root of the repository that the working directory is in.
func Repository(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", errors.New("the working directory is in no Go module")
	}
	return filepath.Dir(mod), nil
}

func readPin(root string) (pinned, error) {
	text, err := os.ReadFile(filepath.Join(root, modFile))
	if err != nil {
		return pinned{}, err
	}
	m := kubernetes.FindSubmatch(text)
	if m == nil {
		return pinned{}, fmt.Errorf("%s requires no k8s.io/kubernetes", modFile)
	}
	p := pinned{version: string(m[1]), major: string(m[2]), minor: string(m[3])}
	p.dir = filepath.Join(root, outDir, fmt.Sprintf("v%s-%x", p.version, sha256.Sum256(text))[:len(p.version)+10])
	return p, nil
}

// lock makes the directory and keeps other processes out until unlock.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func build(ctx context.Context, root string, pin pinned, name string, progress io.Writer) error {
	path := filepath.Join(pin.dir, name)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	fmt.Fprintf(progress, "building %s of Kubernetes v%s from Go modules (minutes the first time)\n", name, pin.version)
	const version = "k8s.io/component-base/version."
	cmd := exec.CommandContext(ctx, "go", "build", "-modfile="+modFile, "-trimpath",
		"-ldflags=-s -w -X "+version+"gitVersion=v"+pin.version+" -X "+version+"gitMajor="+pin.major+" -X "+version+"gitMinor="+pin.minor,
		"-o", path, packages[name])
	// A static binary, which has the same parts in the build cache wherever it is built.
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = progress, io.MultiWriter(progress, &said)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", name, err, tail(said.String()))
	}
	return nil
}

// tail returns the last lines of a text.
func tail(text string) string {
	const lines = 20
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
