package identity_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/countinghouse/countinghouse/controllers/certificates"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
)

var (
	exchange = identity.Identity{Cluster: "demo", Role: identity.Exchange}
	reader   = identity.Identity{Cluster: "demo", Role: identity.Reader}
	node1    = identity.Identity{Cluster: "demo", Role: identity.Node, Shard: "s1"}
)

// metric returns the value of one of a source's metrics.
func metric(t *testing.T, s *identity.Source, name, help, kind, value string) {
	t.Helper()
	full := "countinghouse_tls_" + name
	want := "# HELP " + full + " " + help + "\n# TYPE " + full + " " + kind + "\n" + full + " " + value + "\n"
	if err := testutil.CollectAndCompare(s, strings.NewReader(want), full); err != nil {
		t.Error(err)
	}
}

func stale(t *testing.T, s *identity.Source, value string) {
	t.Helper()
	metric(t, s, "files_unusable", "1 while the certificate files can not be used and the last good ones stay in force.", "gauge", value)
}

func TestFilesAreFollowed(t *testing.T) {
	ca, next := identitytest.Authority(t, "demo"), identitytest.Authority(t, "demo")
	d := identitytest.NewDir(t)
	d.Put(identitytest.Pair(t, ca, node1), identitytest.Bundle(ca))
	s, err := identity.Open(d.Path, identity.Options{Accept: identity.Expect(node1)})
	if err != nil {
		t.Fatal(err)
	}
	if s.Self() != node1 || !slices.Equal(s.Trusted(), []string{ca.Fingerprint()}) || s.Issuer() != ca.Fingerprint() {
		t.Errorf("%v, trusts %v, issued by %s", s.Self(), s.Trusted(), s.Issuer())
	}
	d.Put(identitytest.Pair(t, next, node1), identitytest.Bundle(ca, next))
	s.Refresh()
	if len(s.Trusted()) != 2 || s.Issuer() != next.Fingerprint() {
		t.Errorf("trusts %v, issued by %s", s.Trusted(), s.Issuer())
	}
	stale(t, s, "0")
}

// A file that is written over in place is seen as well.
func TestFilesWithoutLinksAreFollowed(t *testing.T) {
	ca, next := identitytest.Authority(t, "demo"), identitytest.Authority(t, "demo")
	d := identitytest.NewDir(t)
	d.Put(identitytest.Pair(t, ca, node1), identitytest.Bundle(ca))
	s, err := identity.Open(d.Path, identity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.Path, identity.TrustFile)
	if err := os.WriteFile(path, identitytest.Bundle(ca, next), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Refresh()
	if len(s.Trusted()) != 2 {
		t.Errorf("trusts %v", s.Trusted())
	}
}

func TestWhatCanNotBeUsedIsNot(t *testing.T) {
	ca, other := identitytest.Authority(t, "demo"), identitytest.Authority(t, "demo")
	now := time.Now()
	issue := func(id identity.Identity, at time.Time) certificates.Pair {
		p, err := ca.Issue(id, nil, at, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	good, bundle := issue(node1, now), identitytest.Bundle(ca)
	files := func(cert, key, trust []byte) map[string][]byte {
		return map[string][]byte{identity.CertFile: cert, identity.KeyFile: key, identity.TrustFile: trust}
	}
	with := func(p certificates.Pair) map[string][]byte { return files(p.Cert, p.Key, bundle) }
	bad := map[string]map[string][]byte{
		"half a certificate":        files(good.Cert[:len(good.Cert)/2], good.Key, bundle),
		"no key":                    files(good.Cert, nil, bundle),
		"another one's key":         files(good.Cert, issue(node1, now).Key, bundle),
		"no authority":              files(good.Cert, good.Key, nil),
		"half of two authorities":   files(good.Cert, good.Key, append(slices.Clone(bundle), identitytest.Bundle(other)[:100]...)),
		"a certificate as one":      files(good.Cert, good.Key, good.Cert),
		"a key among authorities":   files(good.Cert, good.Key, append(slices.Clone(bundle), good.Key...)),
		"an expired certificate":    with(issue(node1, now.Add(-time.Hour))),
		"a certificate of tomorrow": with(issue(node1, now.Add(24*time.Hour))),
		"another role":              with(issue(exchange, now)),
		"another shard":             with(issue(identity.Identity{Cluster: "demo", Role: identity.Node, Shard: "s2"}, now)),
		"an authority's own":        with(ca.Pair()),
	}
	for what, set := range bad {
		t.Run(what, func(t *testing.T) {
			d := identitytest.NewDir(t)
			d.PutFiles(set)
			o := identity.Options{Accept: identity.Expect(node1)}
			if _, err := identity.Open(d.Path, o); err == nil || !strings.Contains(err.Error(), d.Path) {
				t.Errorf("opened, or an error that does not name the directory: %v", err)
			}
			d = identitytest.NewDir(t)
			d.Put(good, bundle)
			s, err := identity.Open(d.Path, o)
			if err != nil {
				t.Fatal(err)
			}
			expires := s.Expires()
			d.PutFiles(set)
			for range 2 { // the second look counts nothing
				s.Refresh()
			}
			if s.Self() != node1 || s.Issuer() != ca.Fingerprint() || !s.Expires().Equal(expires) {
				t.Errorf("%v, issued by %s", s.Self(), s.Issuer())
			}
			stale(t, s, "1")
			metric(t, s, "reload_failures_total", "Changes of the certificate files that could not be taken into use.", "counter", "1")
			d.Put(identitytest.Pair(t, other, node1), identitytest.Bundle(other))
			s.Refresh()
			if s.Issuer() != other.Fingerprint() {
				t.Error("good files that came after bad ones are not in use")
			}
			stale(t, s, "0")
		})
	}
	t.Logf("%d kinds of bad files", len(bad))
}

// A missing directory, too, leaves what was there in force.
func TestFilesThatGo(t *testing.T) {
	ca := identitytest.Authority(t, "demo")
	d := identitytest.NewDir(t)
	if _, err := identity.Open(d.Path, identity.Options{}); err == nil {
		t.Error("an empty directory was opened")
	}
	d.Put(identitytest.Pair(t, ca, reader), identitytest.Bundle(ca))
	s, err := identity.Open(d.Path, identity.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(d.Path); err != nil {
		t.Fatal(err)
	}
	s.Refresh()
	if s.Self() != reader {
		t.Errorf("it is %v", s.Self())
	}
	stale(t, s, "1")
}
