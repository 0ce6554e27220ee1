package identity_test

import (
	"net/url"
	"testing"

	"github.com/countinghouse/countinghouse/identity"
)

func TestEveryIdentityHasOneURL(t *testing.T) {
	for text, want := range map[string]identity.Identity{
		"spiffe://demo/exchange":        {Cluster: "demo", Role: identity.Exchange},
		"spiffe://demo/reader":          {Cluster: "demo", Role: identity.Reader},
		"spiffe://demo/operator":        {Cluster: "demo", Role: identity.Operator},
		"spiffe://demo/trader":          {Cluster: "demo", Role: identity.Trader},
		"spiffe://a.b-c/node/futures-1": {Cluster: "a.b-c", Role: identity.Node, Shard: "futures-1"},
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := identity.Parse(u); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if got, err := want.URL(); err != nil || got.String() != text || want.String() != text {
			t.Errorf("%+v: %s, %v", want, got, err)
		}
	}
}

func TestOtherURLsAreNoIdentities(t *testing.T) {
	for _, text := range []string{
		"", "demo/exchange", "https://demo/exchange", "spiffe:///exchange", "spiffe://demo", "spiffe://demo/", "spiffe://demo/king",
		"spiffe://demo/exchange/", "spiffe://demo/exchange/s1", "spiffe://demo//exchange", "spiffe://demo/node", "spiffe://demo/node/",
		"spiffe://demo/node/a/b", "spiffe://demo/node/a%2Fb", "spiffe://demo/node/%61", "spiffe://demo:1/exchange", "spiffe://u@demo/exchange",
		"spiffe://demo/exchange?x=1", "spiffe://demo/exchange#x", "spiffe:exchange", "SPIFFE://demo/exchange/../operator",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := identity.Parse(u); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
	for _, i := range []identity.Identity{
		{}, {Cluster: "demo"}, {Cluster: "two words", Role: identity.Exchange}, {Cluster: "demo", Role: identity.Exchange, Shard: "s1"},
		{Cluster: "demo", Role: identity.Node}, {Cluster: "demo", Role: identity.Node, Shard: "a/b"}, {Cluster: "a/b", Role: identity.Reader},
	} {
		if u, err := i.URL(); err == nil {
			t.Errorf("%+v stands in a certificate as %s", i, u)
		}
	}
}
