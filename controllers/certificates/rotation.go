package certificates

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countinghouse/countinghouse/identity"
)

// Policy says how long certificates last.
type Policy struct {
	Authority   time.Duration // lifetime of an authority
	Certificate time.Duration // lifetime of what it issues
}

// Step is where a change of the authority has come to.
type Step string

// The steps. Each waits until everyone has what the one before has changed.
const (
	// Steady: one authority issues, and is the only one that is trusted.
	Steady Step = "Steady"
	// Introducing: the next authority is trusted as well, and issues nothing yet.
	Introducing Step = "Introducing"
	// Retiring: the next authority issues, and the one before is still trusted.
	Retiring Step = "Retiring"
)

// State is that of a cluster's authorities. It is not changed: each change makes
// another one, whose generation is higher by one.
type State struct {
	Step       Step
	Generation int64
	// Token is what has asked for the last change, empty where age did.
	Token string
	// Signing issues certificates; nil while Introducing if its key was lost.
	Signing *Authority
	// Next is the authority that is being introduced.
	Next *Authority
	// Trusted are all authorities that are in the bundle, those above among them.
	Trusted []*x509.Certificate
}

// First returns the state of a cluster that had no authority.
func First(cluster string, now time.Time, p Policy) (*State, error) {
	a, err := NewAuthority(cluster, now, p.Authority)
	if err != nil {
		return nil, err
	}
	return &State{Step: Steady, Generation: 1, Signing: a, Trusted: []*x509.Certificate{a.cert}}, nil
}

// Resume returns the state of a cluster whose authority's key is lost, while there
// are certificates of it that were made in a generation: the next authority is
// introduced to those who trust the lost one.
func Resume(cluster string, trusted []*x509.Certificate, generation int64, now time.Time, p Policy) (*State, error) {
	next, err := NewAuthority(cluster, now, p.Authority)
	if err != nil {
		return nil, err
	}
	return &State{
		Step: Introducing, Generation: generation + 1, Next: next,
		Trusted: append(slices.Clone(trusted), next.cert),
	}, nil
}

// Due reports whether the authority is so old that the next one must be introduced.
func (s *State) Due(now time.Time) bool {
	return s.Step == Steady && due(s.Signing.cert, now)
}

// due reports whether two thirds of a certificate's time have passed.
func due(c *x509.Certificate, now time.Time) bool {
	life := c.NotAfter.Sub(c.NotBefore)
	return !now.Before(c.NotBefore.Add(life / 3 * 2))
}

// Begin introduces the next authority, because its time has come or a token asks
// for it. REQUIRES: the state is Steady.
func (s *State) Begin(cluster, token string, now time.Time, p Policy) (*State, error) {
	next, err := NewAuthority(cluster, now, p.Authority)
	if err != nil {
		return nil, err
	}
	return &State{
		Step: Introducing, Generation: s.Generation + 1, Token: token, Signing: s.Signing, Next: next,
		Trusted: append(slices.Clone(s.Trusted), next.cert),
	}, nil
}

// Proceed takes the next step. REQUIRES: the state is not Steady, and everyone has
// what this step has changed.
func (s *State) Proceed() *State {
	out := &State{Generation: s.Generation + 1, Token: s.Token}
	if s.Step == Introducing {
		out.Step, out.Signing, out.Trusted = Retiring, s.Next, s.Trusted
		return out
	}
	out.Step, out.Signing, out.Trusted = Steady, s.Signing, []*x509.Certificate{s.Signing.cert}
	return out
}

// Bundle returns the certificates of all trusted authorities, in PEM.
func (s *State) Bundle() []byte {
	var b bytes.Buffer
	for _, c := range s.Trusted {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return b.Bytes()
}

// Fingerprints returns those of all trusted authorities, sorted.
func (s *State) Fingerprints() []string {
	out := make([]string, len(s.Trusted))
	for i, c := range s.Trusted {
		out[i] = identity.Fingerprint(c)
	}
	slices.Sort(out)
	return out
}

// The keys of an authority's secret besides those of a certificate's.
const (
	nextCertKey = "next.crt"
	nextKeyKey  = "next.key"
)

// Data returns what is to be kept of the authorities, besides step, generation and
// token.
func (s *State) Data() map[string][]byte {
	out := map[string][]byte{identity.TrustFile: s.Bundle()}
	if s.Signing != nil {
		out[identity.CertFile], out[identity.KeyFile] = s.Signing.pair.Cert, s.Signing.pair.Key
	}
	if s.Next != nil {
		out[nextCertKey], out[nextKeyKey] = s.Next.pair.Cert, s.Next.pair.Key
	}
	return out
}

// ParseState is the inverse of Data.
func ParseState(data map[string][]byte, step Step, generation int64, token string) (*State, error) {
	s := &State{Step: step, Generation: generation, Token: token}
	var err error
	if s.Trusted, err = ParseBundle(data[identity.TrustFile]); err != nil {
		return nil, err
	}
	if s.Signing, err = optional(data, identity.CertFile, identity.KeyFile); err != nil {
		return nil, err
	}
	if s.Next, err = optional(data, nextCertKey, nextKeyKey); err != nil {
		return nil, err
	}
	switch {
	case generation < 1:
		return nil, fmt.Errorf("generation %d", generation)
	case step != Steady && step != Introducing && step != Retiring:
		return nil, fmt.Errorf("step %q is unknown", step)
	case (step == Introducing) != (s.Next != nil), step != Introducing && s.Signing == nil:
		return nil, fmt.Errorf("step %s does not go with the authorities that are there", step)
	}
	for _, a := range []*Authority{s.Signing, s.Next} {
		if a != nil && !slices.ContainsFunc(s.Trusted, a.cert.Equal) {
			return nil, errors.New("an authority is not in its own bundle")
		}
	}
	return s, nil
}

func optional(data map[string][]byte, cert, key string) (*Authority, error) {
	if len(data[cert]) == 0 && len(data[key]) == 0 {
		return nil, nil
	}
	return ParseAuthority(Pair{data[cert], data[key]})
}

// ParseBundle returns the certificates of a bundle, one at least.
func ParseBundle(b []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in the bundle")
	}
	return out, nil
}

// Leaf returns what a party's secret shall hold, given what it holds: the
// certificate stays while it is good, and the bundle is the present one.
func (s *State) Leaf(id identity.Identity, have map[string][]byte, now time.Time, p Policy) (map[string][]byte, error) {
	pair := Pair{have[identity.CertFile], have[identity.KeyFile]}
	if !s.good(pair, id, now) {
		by := s.Signing
		if by == nil {
			by = s.Next // better one that is not known everywhere than none
		}
		var err error
		if pair, err = by.Issue(id, nil, now, p.Certificate); err != nil {
			return nil, err
		}
	}
	return map[string][]byte{identity.CertFile: pair.Cert, identity.KeyFile: pair.Key, identity.TrustFile: s.Bundle()}, nil
}

// good reports whether a certificate is the identity's, of the authority that
// issues, and young.
func (s *State) good(p Pair, id identity.Identity, now time.Time) bool {
	c, err := parsePair(p)
	if err != nil || due(c, now) || now.Before(c.NotBefore) {
		return false
	}
	if got, err := identity.Of(c); err != nil || got != id {
		return false
	}
	if s.Signing != nil {
		return c.CheckSignatureFrom(s.Signing.cert) == nil
	}
	return slices.ContainsFunc(s.Trusted, func(ca *x509.Certificate) bool { return c.CheckSignatureFrom(ca) == nil })
}
