package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// ServerConfig returns a configuration for a server: every client must show a
// certificate of the cluster.
func (s *Source) ServerConfig() *tls.Config {
	c := s.config()
	c.ClientAuth = tls.RequireAnyClientCert // verifyPeer verifies it
	c.VerifyConnection = func(st tls.ConnectionState) error {
		_, err := s.verifyPeer(st.PeerCertificates, x509.ExtKeyUsageClientAuth)
		return err
	}
	return c
}

// ClientConfig returns a configuration for connections to servers of the identity
// want; whoever else answers is refused.
func (s *Source) ClientConfig(want Identity) *tls.Config {
	c := s.config()
	// The library would look for a host name; the identity is checked instead.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(st tls.ConnectionState) error {
		got, err := s.verifyPeer(st.PeerCertificates, x509.ExtKeyUsageServerAuth)
		if err == nil && got != want {
			err = fmt.Errorf("%s answers where %s was expected: correct the address", got, want)
		}
		return err
	}
	return c
}

// config is what both sides have in common. Nothing in it depends on what the
// files hold now. A session is never resumed: it would go on without a look at
// certificates.
func (s *Source) config() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.glance()
			return &s.current.Load().cert, nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			s.glance()
			return &s.current.Load().cert, nil
		},
	}
}

func (s *Source) verifyPeer(chain []*x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	s.glance()
	id, _, err := s.current.Load().verify(chain, usage, s.options.Now())
	if err != nil {
		s.metrics.refused.Inc()
	}
	return id, err
}

// Server returns credentials for a gRPC server.
func (s *Source) Server() credentials.TransportCredentials {
	return &tracked{TransportCredentials: credentials.NewTLS(s.ServerConfig()), source: s, usage: x509.ExtKeyUsageClientAuth}
}

// Client returns credentials for a gRPC client of servers of the identity want.
func (s *Source) Client(want Identity) credentials.TransportCredentials {
	return &tracked{TransportCredentials: credentials.NewTLS(s.ClientConfig(want)), source: s, usage: x509.ExtKeyUsageServerAuth}
}

// tracked are credentials that note each connection, to end it when its peer is
// not trusted any more.
type tracked struct {
	credentials.TransportCredentials
	source *Source
	usage  x509.ExtKeyUsage // of the peer
}

// ClientHandshake implements credentials.TransportCredentials.
func (t *tracked) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	return t.follow(conn, info, err)
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *tracked) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	return t.follow(conn, info, err)
}

// Clone implements credentials.TransportCredentials.
func (t *tracked) Clone() credentials.TransportCredentials {
	return &tracked{TransportCredentials: t.TransportCredentials.Clone(), source: t.source, usage: t.usage}
}

func (t *tracked) follow(conn net.Conn, info credentials.AuthInfo, err error) (net.Conn, credentials.AuthInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	of, ok := info.(credentials.TLSInfo)
	if !ok {
		conn.Close()
		return nil, nil, fmt.Errorf("the handshake has left %T", info)
	}
	return t.source.conns.add(conn, of.State.PeerCertificates, t.usage), info, nil
}

// FromContext returns the identity of whoever makes the call that ctx belongs to,
// and false if the connection has none.
func FromContext(ctx context.Context) (Identity, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return Identity{}, false
	}
	id, err := Of(info.State.PeerCertificates[0])
	return id, err == nil
}
