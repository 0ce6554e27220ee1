package certificates

import (
	"bytes"
	"crypto/x509"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/identity"
)

var (
	start  = time.Date(2027, 3, 1, 9, 0, 0, 0, time.UTC)
	policy = Policy{Authority: 360 * time.Hour, Certificate: 30 * time.Hour}
	reader = identity.Identity{Cluster: "demo", Role: identity.Reader}
)

func first(t *testing.T) *State {
	t.Helper()
	s, err := First("demo", start, policy)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func leaf(t *testing.T, s *State, have map[string][]byte, now time.Time) map[string][]byte {
	t.Helper()
	data, err := s.Leaf(reader, have, now, policy)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// take is what a process makes of a secret at a time.
func take(t *testing.T, data map[string][]byte, now time.Time) *identity.Source {
	t.Helper()
	s, err := identity.FromPEM(data[identity.CertFile], data[identity.KeyFile], data[identity.TrustFile], identity.Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatIsIssued(t *testing.T) {
	s := first(t)
	if _, err := parsePair(Pair{leaf(t, s, nil, start)[identity.CertFile], leaf(t, s, nil, start)[identity.KeyFile]}); err == nil {
		t.Fatal("two certificates have one key")
	}
	data := leaf(t, s, nil, start)
	c, err := parsePair(Pair{data[identity.CertFile], data[identity.KeyFile]})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := identity.Of(c); err != nil || got != reader {
		t.Errorf("%v, %v", got, err)
	}
	if !c.NotAfter.Equal(start.Add(policy.Certificate)) || !c.NotBefore.Equal(start.Add(-backdate)) || c.IsCA || c.SerialNumber.BitLen() != serialBits {
		t.Errorf("from %s to %s, authority %t, serial %v", c.NotBefore, c.NotAfter, c.IsCA, c.SerialNumber)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		roots := x509.NewCertPool()
		roots.AddCert(s.Signing.cert)
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Signing.Issue(identity.Identity{Cluster: "two words", Role: identity.Reader}, nil, start, time.Hour); err == nil {
		t.Error("a certificate was issued that nobody can read")
	}
	late := policy.Authority - time.Hour
	data = leaf(t, s, nil, start.Add(late))
	if c, err = parsePair(Pair{data[identity.CertFile], data[identity.KeyFile]}); err != nil || !c.NotAfter.Equal(s.Signing.cert.NotAfter) {
		t.Errorf("a certificate outlives its authority: %v, %v", c.NotAfter, err)
	}
}

func TestLeafIsRenewedInTime(t *testing.T) {
	s := first(t)
	data := leaf(t, s, nil, start)
	life := policy.Certificate + backdate
	if again := leaf(t, s, data, start.Add(life/3*2-backdate-time.Second)); !maps.EqualFunc(again, data, bytes.Equal) {
		t.Error("renewed before two thirds of its time")
	}
	if again := leaf(t, s, data, start.Add(life/3*2-backdate)); bytes.Equal(again[identity.CertFile], data[identity.CertFile]) {
		t.Error("not renewed at two thirds of its time")
	}
	for what, bad := range map[string]map[string][]byte{
		"another one's": func() map[string][]byte {
			d, err := s.Leaf(identity.Identity{Cluster: "demo", Role: identity.Operator}, nil, start, policy)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}(),
		"another authority's": leaf(t, first(t), nil, start),
		"of tomorrow":         leaf(t, s, nil, start.Add(24*time.Hour)),
		"without a key":       {identity.CertFile: data[identity.CertFile]},
		"nonsense":            {identity.CertFile: []byte("x"), identity.KeyFile: []byte("y")},
	} {
		if got := take(t, leaf(t, s, bad, start), start); got.Self() != reader || got.Issuer() != s.Signing.Fingerprint() {
			t.Errorf("%s: %v, issued by %s", what, got.Self(), got.Issuer())
		}
	}
}

// roundTrip stores a state and reads it back.
func roundTrip(t *testing.T, s *State) *State {
	t.Helper()
	back, err := ParseState(s.Data(), s.Step, s.Generation, s.Token)
	if err != nil {
		t.Fatalf("%s: %v", s.Step, err)
	}
	if !maps.EqualFunc(back.Data(), s.Data(), bytes.Equal) || !slices.Equal(back.Fingerprints(), s.Fingerprints()) {
		t.Errorf("%s: comes back otherwise", s.Step)
	}
	return back
}

// Along a change of the authority, whoever is one step behind trusts and is
// trusted by whoever is not.
func TestNeighbouringStepsTrustEachOther(t *testing.T) {
	s := first(t)
	data := leaf(t, s, nil, start)
	var steps []Step
	for change := range 2 {
		if s.Due(start.Add((policy.Authority+backdate)/3*2-backdate-time.Second)) && change == 0 {
			t.Error("due before two thirds of its time")
		}
		now := s.Signing.cert.NotBefore.Add((policy.Authority + backdate) / 3 * 2)
		if !s.Due(now) {
			t.Error("not due at two thirds of its time")
		}
		data = leaf(t, s, data, now)
		next, err := s.Begin("demo", "", now, policy)
		for ; err == nil; next = s.Proceed() {
			before := data
			s = roundTrip(t, next)
			data = leaf(t, s, before, now)
			steps = append(steps, s.Step)
			for _, pair := range [][2]map[string][]byte{{before, data}, {data, before}, {data, data}} {
				if id := take(t, pair[0], now).Issuer(); !slices.Contains(take(t, pair[1], now).Trusted(), id) {
					t.Errorf("step %s: %s is not trusted", s.Step, id)
				}
			}
			if s.Due(now) {
				t.Errorf("step %s is due", s.Step)
			}
			if s.Step == Steady {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := []Step{Introducing, Retiring, Steady, Introducing, Retiring, Steady}; !slices.Equal(steps, want) || s.Generation != 7 || len(s.Trusted) != 1 {
		t.Errorf("steps %v, generation %d, %d trusted", steps, s.Generation, len(s.Trusted))
	}
}

// A lost key costs nobody the connection: the certificates that are there go on
// until the next authority is known.
func TestLostKey(t *testing.T) {
	before := first(t)
	data := leaf(t, before, nil, start)
	trusted, err := ParseBundle(data[identity.TrustFile])
	if err != nil {
		t.Fatal(err)
	}
	s, err := Resume("demo", trusted, 4, start, policy)
	if err != nil {
		t.Fatal(err)
	}
	s = roundTrip(t, s)
	kept := leaf(t, s, data, start)
	if s.Generation != 5 || !bytes.Equal(kept[identity.CertFile], data[identity.CertFile]) || len(take(t, kept, start).Trusted()) != 2 {
		t.Errorf("generation %d, the certificate or its bundle is not what it should be", s.Generation)
	}
	if got := take(t, leaf(t, s, nil, start), start).Issuer(); got != s.Next.Fingerprint() {
		t.Errorf("who has none gets one of %s", got)
	}
	s = roundTrip(t, s.Proceed())
	if got := take(t, leaf(t, s, kept, start), start).Issuer(); got != s.Signing.Fingerprint() {
		t.Errorf("issued by %s", got)
	}
}

func TestBadStatesAreRefused(t *testing.T) {
	s := first(t)
	introducing, err := s.Begin("demo", "", start, policy)
	if err != nil {
		t.Fatal(err)
	}
	without := func(data map[string][]byte, keys ...string) map[string][]byte {
		for _, k := range keys {
			delete(data, k)
		}
		return data
	}
	other := first(t).Data()
	mixed := s.Data()
	mixed[identity.TrustFile] = other[identity.TrustFile]
	for what, err := range map[string]error{
		"empty":                    parses(nil, Steady, 1),
		"no bundle":                parses(without(s.Data(), identity.TrustFile), Steady, 1),
		"no key":                   parses(without(s.Data(), identity.KeyFile), Steady, 1),
		"no authority":             parses(without(s.Data(), identity.KeyFile, identity.CertFile), Steady, 1),
		"no step":                  parses(s.Data(), "", 1),
		"no generation":            parses(s.Data(), Steady, 0),
		"introducing without next": parses(s.Data(), Introducing, 1),
		"steady with next":         parses(introducing.Data(), Steady, 1),
		"another one's bundle":     parses(mixed, Steady, 1),
		"a leaf as authority":      parses(leaf(t, s, nil, start), Steady, 1),
	} {
		if err == nil {
			t.Errorf("%s: was taken", what)
		}
	}
}

func parses(data map[string][]byte, step Step, generation int64) error {
	_, err := ParseState(data, step, generation, "")
	return err
}
