// Package identitytest makes certificates for tests, in directories that change as
// Kubernetes changes a mounted secret.
package identitytest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/controllers/certificates"
	"github.com/countinghouse/countinghouse/identity"
)

// Lifetime is that of the certificates made here.
const Lifetime = time.Hour

// Authority returns an authority for a cluster.
func Authority(t testing.TB, cluster string) *certificates.Authority {
	t.Helper()
	a, err := certificates.NewAuthority(cluster, time.Now(), Lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Bundle returns the certificates of authorities, in PEM.
func Bundle(as ...*certificates.Authority) []byte {
	var b bytes.Buffer
	for _, a := range as {
		b.Write(a.Pair().Cert)
	}
	return b.Bytes()
}

// Pair returns a certificate of an identity.
func Pair(t testing.TB, by *certificates.Authority, id identity.Identity) certificates.Pair {
	t.Helper()
	p, err := by.Issue(id, nil, time.Now(), Lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Source returns a source of an identity that never changes.
func Source(t testing.TB, by *certificates.Authority, id identity.Identity, trusted ...*certificates.Authority) *identity.Source {
	t.Helper()
	p := Pair(t, by, id)
	s, err := identity.FromPEM(p.Cert, p.Key, Bundle(append(trusted, by)...), identity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var generation atomic.Int64 // of what a Dir holds

// Dir is a directory as the kubelet keeps it: the files are links into ..data,
// which is a link that is replaced as a whole.
type Dir struct {
	Path string
	t    testing.TB
}

// NewDir returns a directory that is empty still.
func NewDir(t testing.TB) *Dir { return &Dir{Path: t.TempDir(), t: t} }

// Put replaces the files.
func (d *Dir) Put(p certificates.Pair, trust []byte) {
	d.t.Helper()
	d.PutFiles(map[string][]byte{identity.CertFile: p.Cert, identity.KeyFile: p.Key, identity.TrustFile: trust})
}

// PutFiles replaces the files by any others.
func (d *Dir) PutFiles(files map[string][]byte) {
	d.t.Helper()
	check := func(err error) {
		d.t.Helper()
		if err != nil {
			d.t.Fatal(err)
		}
	}
	name := fmt.Sprintf("..%d", generation.Add(1))
	check(os.Mkdir(filepath.Join(d.Path, name), 0o700))
	for file, b := range files {
		check(os.WriteFile(filepath.Join(d.Path, name, file), b, 0o600))
		if link := filepath.Join(d.Path, file); !exists(link) {
			check(os.Symlink(filepath.Join("..data", file), link))
		}
	}
	data := filepath.Join(d.Path, "..data")
	before, _ := os.Readlink(data) // none at first
	check(os.Symlink(name, data+"_tmp"))
	check(os.Rename(data+"_tmp", data))
	if before != "" {
		check(os.RemoveAll(filepath.Join(d.Path, before)))
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
