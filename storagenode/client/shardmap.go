package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"

	"github.com/countinghouse/countinghouse/record"
)

// Map says which shard owns which instruments and where its members are. It is
// not changed once a Client uses it.
type Map struct {
	Cluster string  `json:"cluster"`
	Shards  []Shard `json:"shards"`
}

// Shard is one Raft group of a Map.
type Shard struct {
	Name        string   `json:"name"`
	Instruments []string `json:"instruments"`
	Members     []Member `json:"members"`
}

// Member is one replica of a shard.
type Member struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port
}

// LoadMap reads a Map from a YAML file; errors name the file and the field.
func LoadMap(path string) (*Map, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("shard map: %w", err)
	}
	m, err := ParseMap(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// ParseMap parses and checks a Map in YAML. A field it does not know is an error.
func ParseMap(b []byte) (*Map, error) {
	m := &Map{}
	if err := yaml.UnmarshalStrict(b, m); err != nil {
		return nil, fmt.Errorf("shard map: %w", err)
	}
	if !oneDocument(b) {
		return nil, errors.New("shard map: more than one YAML document: take out the line \"---\" and what is behind it")
	}
	return m, m.Check()
}

// oneDocument reports whether nothing comes after the first YAML document, which
// is all that UnmarshalStrict reads.
func oneDocument(b []byte) bool {
	d := yamlv2.NewDecoder(bytes.NewReader(b))
	var document any
	if d.Decode(&document) != nil {
		return true
	}
	return errors.Is(d.Decode(&document), io.EOF)
}

// YAML returns the map in the form that ParseMap reads.
func (m *Map) YAML() ([]byte, error) { return yaml.Marshal(m) }

// Check reports the first rule that the map breaks: every name set and used
// once, every instrument in one shard, every address a host and a port.
func (m *Map) Check() error {
	if m.Cluster == "" {
		return errors.New("shard map: cluster is empty: name the cluster that the nodes were started with")
	}
	if len(m.Shards) == 0 {
		return errors.New("shard map: shards is empty: list at least one")
	}
	names, owners := map[string]bool{}, map[string]string{}
	ids, addresses := map[string]bool{}, map[string]bool{}
	for i, s := range m.Shards {
		if s.Name == "" || names[s.Name] {
			return fmt.Errorf("shard map: shards[%d].name %q is empty or used twice", i, s.Name)
		}
		names[s.Name] = true
		if err := s.checkInstruments(owners); err != nil {
			return err
		}
		if err := s.checkMembers(ids, addresses); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shard) checkInstruments(owners map[string]string) error {
	for _, name := range s.Instruments {
		if _, err := record.MakeSymbol(name); err != nil {
			return fmt.Errorf("shard map: shard %s: %w", s.Name, err)
		}
		if other, ok := owners[name]; ok {
			return fmt.Errorf("shard map: instrument %s is listed in shards %s and %s: it belongs to one", name, other, s.Name)
		}
		owners[name] = s.Name
	}
	return nil
}

func (s *Shard) checkMembers(ids, addresses map[string]bool) error {
	if len(s.Members) == 0 {
		return fmt.Errorf("shard map: shard %s: members is empty: list at least one", s.Name)
	}
	for i, member := range s.Members {
		if member.ID == "" || ids[member.ID] {
			return fmt.Errorf("shard map: shard %s: members[%d].id %q is empty or used twice", s.Name, i, member.ID)
		}
		if _, _, err := net.SplitHostPort(member.Address); err != nil {
			return fmt.Errorf("shard map: shard %s: members[%d].address %q: %w: use host:port", s.Name, i, member.Address, err)
		}
		if addresses[member.Address] {
			return fmt.Errorf("shard map: shard %s: members[%d].address %q is used twice", s.Name, i, member.Address)
		}
		ids[member.ID], addresses[member.Address] = true, true
	}
	return nil
}

// ShardOf returns the shard that owns the instrument, or nil.
func (m *Map) ShardOf(instrument string) *Shard {
	for i := range m.Shards {
		for _, name := range m.Shards[i].Instruments {
			if name == instrument {
				return &m.Shards[i]
			}
		}
	}
	return nil
}

// Shard returns the shard of that name, or nil.
func (m *Map) Shard(name string) *Shard {
	for i := range m.Shards {
		if m.Shards[i].Name == name {
			return &m.Shards[i]
		}
	}
	return nil
}

// Member returns the shard's member of that id, or nil.
func (s *Shard) Member(id string) *Member {
	for i := range s.Members {
		if s.Members[i].ID == id {
			return &s.Members[i]
		}
	}
	return nil
}
