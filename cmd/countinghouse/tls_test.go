package main

import (
	"strings"
	"testing"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
	"github.com/countinghouse/countinghouse/localcluster"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// The commands that read a cluster do so with a certificate, and are refused
// without one, or with that of a role that may not.
func TestCommandsWithCertificates(t *testing.T) {
	ca := identitytest.Authority(t, "test")
	dirOf := func(id identity.Identity) string {
		d := identitytest.NewDir(t)
		d.Put(identitytest.Pair(t, ca, id), identitytest.Bundle(ca))
		return d.Path
	}
	role := func(r identity.Role) identity.Identity { return identity.Identity{Cluster: "test", Role: r} }
	command, err := nodeCommand()
	if err != nil {
		t.Fatal(err)
	}
	c, err := localcluster.Start(t.Context(), localcluster.Options{
		Cluster: "test", Dir: t.TempDir(), Command: command,
		Args:   []string{"--segment-bytes", "4194304", "--tls-dir", dirOf(identity.Identity{Cluster: "test", Role: identity.Node, Shard: "s1"})},
		Shards: []localcluster.Shard{{Name: "s1", Instruments: []string{"IF2501"}, Replicas: 1}},
		Client: client.Options{TLS: identitytest.Source(t, ca, role(identity.Operator))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	shards, err := c.WriteMap()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitLeaders(t.Context()); err != nil {
		t.Fatal(err)
	}
	reader, operator := dirOf(role(identity.Reader)), dirOf(role(identity.Operator))
	for _, args := range [][]string{
		{"stats", "--tls-dir", reader}, {"scan", "IF2501", "--tls-dir", reader}, {"verify", "--tls-dir", operator},
	} {
		if _, _, err := execute(t, append(args, "--shards", shards)...); err != nil {
			t.Errorf("%v: %v", args, err)
		}
	}
	for _, bad := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"scan", "IF2501", "--timeout", "300ms"}, output.ExitUnavailable, "shard s1"},
		{[]string{"verify", "--tls-dir", reader}, output.ExitUnavailable, "role reader may not call"},
		{[]string{"scan", "IF2501", "--tls-dir", dirOf(role(identity.Trader))}, output.ExitFailed, "role trader may not call"},
		{[]string{"scan", "IF2501", "--tls-dir", dirOf(identity.Identity{Cluster: "other", Role: identity.Reader})}, output.ExitUsage, "spiffe://other/reader"},
		{[]string{"scan", "IF2501", "--tls-dir", "/nonexistent"}, output.ExitUsage, "--tls-dir"},
	} {
		out, _, err := execute(t, append(bad.args, "--shards", shards)...)
		if err == nil || output.ExitCode(err) != bad.code || !strings.Contains(out+err.Error(), bad.want) {
			t.Errorf("%v: exit code %d, %v", bad.args, output.ExitCode(err), err)
		}
	}
}
