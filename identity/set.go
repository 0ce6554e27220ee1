package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The files of a directory, named as in a Kubernetes secret of type TLS.
const (
	CertFile  = "tls.crt" // the certificate, and intermediate ones behind it
	KeyFile   = "tls.key"
	TrustFile = "ca.crt" // all authorities that are trusted
)

// set is what is in use at one time. It is not changed.
type set struct {
	cert         tls.Certificate
	self         Identity
	authorities  []*x509.Certificate
	roots        *x509.CertPool
	fingerprints []string // of the authorities, sorted
}

// parse makes a set of the three files' contents. Certificate and key must belong
// together.
func parse(certPEM, keyPEM, trustPEM []byte) (*set, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", CertFile, KeyFile, err)
	}
	self, err := Of(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", CertFile, err)
	}
	s := &set{cert: cert, self: self, roots: x509.NewCertPool()}
	if s.authorities, err = parseBundle(trustPEM); err != nil {
		return nil, fmt.Errorf("%s: %w", TrustFile, err)
	}
	for _, ca := range s.authorities {
		s.roots.AddCert(ca)
		s.fingerprints = append(s.fingerprints, Fingerprint(ca))
	}
	slices.Sort(s.fingerprints)
	s.fingerprints = slices.Compact(s.fingerprints)
	return s, nil
}

// parseBundle returns the authorities of a bundle, one at least. Anything else in
// it is an error: it may be half of a certificate.
func parseBundle(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for rest := bytes.TrimSpace(b); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("after %d certificates there is something else", len(out))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !c.IsCA {
			return nil, fmt.Errorf("%q is not an authority's certificate", c.Subject)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return out, nil
}

// Fingerprint returns the SHA-256 of a certificate, in hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// usable says what is wrong with the own certificate at a time.
func (s *set) usable(now time.Time) error {
	leaf := s.cert.Leaf
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return fmt.Errorf("%s: the certificate is valid from %s to %s, and it is %s", CertFile,
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// verify checks the certificate that a peer has shown, the first of chain, and
// returns whose it is and when it must be shown anew.
func (s *set) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (Identity, time.Time, error) {
	if len(chain) == 0 {
		return Identity{}, time.Time{}, errors.New("the peer has shown no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots: s.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return Identity{}, time.Time{}, err
	}
	id, err := Of(chain[0])
	if err != nil {
		return Identity{}, time.Time{}, err
	}
	if id.Cluster != s.self.Cluster {
		return Identity{}, time.Time{}, fmt.Errorf("the peer is %s, of another cluster than %s", id, s.self)
	}
	return id, validUntil(chains), nil
}

// validUntil returns when the last of some chains expires.
func validUntil(chains [][]*x509.Certificate) (until time.Time) {
	for _, chain := range chains {
		first := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		if first.After(until) {
			until = first
		}
	}
	return until
}
