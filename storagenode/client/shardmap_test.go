package client

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const goodMap = `
cluster: demo
shards:
- name: s1
  instruments: [IF2501, __ACCOUNT__]
  members:
  - {id: s1-0, address: "127.0.0.1:7001"}
  - {id: s1-1, address: "127.0.0.1:7002"}
- name: s2
  instruments: [IC2501]
  members:
  - {id: s2-0, address: "127.0.0.1:7003"}
`

func TestMapRoundTrip(t *testing.T) {
	m, err := ParseMap([]byte(goodMap))
	if err != nil {
		t.Fatal(err)
	}
	if s := m.ShardOf("IC2501"); s == nil || s.Name != "s2" || m.ShardOf("none") != nil {
		t.Errorf("owner of IC2501: %+v", s)
	}
	if m.Shard("s1").Member("s1-1").Address != "127.0.0.1:7002" || m.Shard("s3") != nil || m.Shard("s1").Member("s2-0") != nil {
		t.Error("members are not found by name")
	}
	b, err := m.YAML()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "shards.yaml")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := LoadMap(path)
	if err != nil || !reflect.DeepEqual(again, m) {
		t.Errorf("written and read again: %v, %+v", err, again)
	}
}

func TestBadMapsAreNamed(t *testing.T) {
	for want, change := range map[string][2]string{
		"cluster is empty":            {"cluster: demo", "cluster: ''"},
		`unknown field "shard"`:       {"shards:", "shard:"},
		"shards[1].name":              {"name: s2", "name: s1"},
		"IF2501 is listed in shards":  {"[IC2501]", "[IF2501]"},
		"a name has 1 to 16":          {"[IC2501]", "[THIS-NAME-IS-TOO-LONG]"},
		"members[0].id":               {"id: s2-0", "id: s1-0"},
		"use host:port":               {`"127.0.0.1:7003"`, `"127.0.0.1"`},
		"is used twice":               {`"127.0.0.1:7003"`, `"127.0.0.1:7001"`},
		"more than one YAML document": {`- {id: s2-0, address: "127.0.0.1:7003"}`, `- {id: s2-0, address: "127.0.0.1:7003"}` + "\n---\ncluster: other"},
		"members is empty":            {`- {id: s2-0, address: "127.0.0.1:7003"}`, ""},
	} {
		_, err := ParseMap([]byte(strings.Replace(goodMap, change[0], change[1], 1)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s → %s: got %v, want %q", change[0], change[1], err, want)
		}
	}
	if _, err := LoadMap(filepath.Join(t.TempDir(), "missing.yaml")); err == nil || !strings.Contains(err.Error(), "missing.yaml") {
		t.Errorf("a missing file must be named: %v", err)
	}
	if _, err := ParseMap([]byte("cluster: x")); err == nil || !strings.Contains(err.Error(), "shards is empty") {
		t.Errorf("got %v", err)
	}
}

func FuzzParseMap(f *testing.F) {
	f.Add([]byte(goodMap))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMap(b)
		if err != nil {
			return
		}
		y, err := m.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseMap(y); err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("written and read again: %v", err)
		}
	})
}
