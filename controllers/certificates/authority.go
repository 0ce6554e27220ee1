// Package certificates issues the certificates of a cluster and says when they are
// to be renewed. It knows neither Kubernetes nor the clock: it is told the time.
package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/countinghouse/countinghouse/identity"
)

// backdate is how far the clocks of other machines may be behind the issuer's.
const backdate = 5 * time.Minute

const serialBits = 127 // positive, and within the 20 bytes that a serial may have

// Pair is a certificate and its key in PEM.
type Pair struct {
	Cert, Key []byte
}

// Authority issues certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pair Pair
}

// NewAuthority returns an authority for a cluster that is trusted for a lifetime
// from now.
func NewAuthority(cluster string, now time.Time, lifetime time.Duration) (*Authority, error) {
	template, err := newTemplate(now, lifetime)
	if err != nil {
		return nil, err
	}
	template.Subject = pkix.Name{CommonName: fmt.Sprintf("%s authority %x", cluster, template.SerialNumber.Bytes()[:4])}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	pair, err := sign(template, nil)
	if err != nil {
		return nil, err
	}
	return ParseAuthority(pair)
}

// ParseAuthority returns the authority whose certificate and key are given.
func ParseAuthority(p Pair) (*Authority, error) {
	both, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	key, ok := both.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !both.Leaf.IsCA {
		return nil, errors.New("authority: the certificate is not one that was issued here")
	}
	return &Authority{cert: both.Leaf, key: key, pair: p}, nil
}

// Pair returns the authority's own certificate and key.
func (a *Authority) Pair() Pair { return a.pair }

// Certificate returns the authority's own certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Fingerprint names the authority.
func (a *Authority) Fingerprint() string { return identity.Fingerprint(a.cert) }

// Issue returns a certificate for clients and servers of an identity, valid for a
// lifetime from now, but no longer than the authority.
func (a *Authority) Issue(id identity.Identity, dnsNames []string, now time.Time, lifetime time.Duration) (Pair, error) {
	u, err := id.URL()
	if err != nil {
		return Pair{}, err
	}
	template, err := newTemplate(now, lifetime)
	if err != nil {
		return Pair{}, err
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	template.Subject = pkix.Name{CommonName: string(id.Role)}
	template.URIs, template.DNSNames = []*url.URL{u}, dnsNames
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.BasicConstraintsValid = true
	return sign(template, a)
}

func parsePair(p Pair) (*x509.Certificate, error) {
	both, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, err
	}
	return both.Leaf, nil
}

func newTemplate(now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, err
	}
	serial.SetBit(serial, serialBits-1, 1) // neither zero nor short
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime)}, nil
}

// sign makes a key for a template and has it signed by an authority, or by the key
// itself where by is nil.
func sign(template *x509.Certificate, by *Authority) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	if by == nil {
		by = &Authority{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		return Pair{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}, nil
}
