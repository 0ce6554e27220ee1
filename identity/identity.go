package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what a party is to the cluster.
type Role string

// The roles.
const (
	// Exchange writes the records, and reads them when it recovers.
	Exchange Role = "exchange"
	// Reader reads records and market data.
	Reader Role = "reader"
	// Operator administers shards, and reads.
	Operator Role = "operator"
	// Node is a member of a shard, the one that its identity names.
	Node Role = "node"
	// Trader sends orders to an exchange.
	Trader Role = "trader"
)

// Roles lists all roles.
var Roles = []Role{Exchange, Reader, Operator, Node, Trader}

const scheme = "spiffe"

// Identity is who a certificate speaks for.
type Identity struct {
	Cluster string
	Role    Role
	Shard   string // of a Node; empty for the others
}

// URL returns the identity as it stands in a certificate. It fails for names that
// can not stand there.
func (i Identity) URL() (*url.URL, error) {
	u := i.url()
	back, err := url.Parse(u.String())
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", i, err)
	}
	if parsed, err := Parse(back); err != nil || parsed != i {
		return nil, fmt.Errorf("identity %s: the names of cluster and shard can not stand in a certificate: use letters, digits, dots and hyphens", i)
	}
	return back, nil
}

func (i Identity) url() *url.URL {
	path := "/" + string(i.Role)
	if i.Role == Node {
		path += "/" + i.Shard
	}
	return &url.URL{Scheme: scheme, Host: i.Cluster, Path: path}
}

// String returns the identity in the form of its URL.
func (i Identity) String() string { return i.url().String() }

// Parse returns the identity that a URL states. There is one URL for each
// identity; any other spelling is an error.
func Parse(u *url.URL) (Identity, error) {
	role, shard, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	i := Identity{Cluster: u.Host, Role: Role(role), Shard: shard}
	switch {
	case u.Scheme != scheme || u.Host == "" || u.Host != u.Hostname() || i.String() != u.String():
		return Identity{}, fmt.Errorf("%q is not of the form %s://<cluster>/<role> or %s://<cluster>/node/<shard>", u, scheme, scheme)
	case !slices.Contains(Roles, i.Role):
		return Identity{}, fmt.Errorf("%q: there is no role %q", u, role)
	case i.Role == Node && (shard == "" || strings.Contains(shard, "/")):
		return Identity{}, fmt.Errorf("%q: a node's identity ends with the name of its shard", u)
	}
	return i, nil
}

// Of returns the identity of a certificate.
func Of(c *x509.Certificate) (Identity, error) {
	switch len(c.URIs) {
	case 0:
		return Identity{}, errors.New("the certificate has no URI: issue it with one that states an identity")
	case 1:
		return Parse(c.URIs[0])
	}
	return Identity{}, fmt.Errorf("the certificate has %d URIs: issue it with one", len(c.URIs))
}
