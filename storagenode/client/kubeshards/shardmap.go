package kubeshards

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// members returns those of a shard's members that can be reached: they have a pod
// and data.
func members(s *v1.InstrumentShard) []client.Member {
	var out []client.Member
	for _, m := range s.Status.Members {
		switch m.Role {
		case v1.RoleLeader, v1.RoleFollower, v1.RoleLearner, v1.RoleJoining:
			if m.Pod != "" {
				out = append(out, client.Member{ID: m.ID, Address: resource.Address(s, m.ID)})
			}
		}
	}
	return out
}

// ready returns why a shard that owns instruments can not be used, "" if it can.
func ready(s *v1.InstrumentShard) string {
	switch {
	case !s.Status.Bootstrapped:
		return fmt.Sprintf("shard %s is being formed", s.Name)
	case len(members(s)) == 0:
		return fmt.Sprintf("no member of shard %s has a pod", s.Name)
	}
	return ""
}

// shardMap makes a map of the shards, which are sorted by name. A shard that is not
// formed yet is left out unless it owns one of the instruments that are wanted; a
// formed one is needed in any case, since it may hold records of instruments that
// are not traded any more. obstacles say why the map is not whole yet, one each.
func shardMap(cluster string, shards []*v1.InstrumentShard, wanted []string) (m *client.Map, obstacles []string) {
	m = &client.Map{Cluster: cluster}
	owners := make(map[string]string)
	for _, s := range shards {
		for _, name := range s.Status.Instruments {
			if other, ok := owners[name]; ok {
				obstacles = append(obstacles, fmt.Sprintf("shards %s and %s both have %s, until the operator decides", other, s.Name, name))
			}
			owners[name] = s.Name
		}
		isWanted := slices.ContainsFunc(wanted, func(name string) bool { return owners[name] == s.Name })
		if len(s.Status.Instruments) == 0 || !s.Status.Bootstrapped && !isWanted {
			continue
		}
		if why := ready(s); why != "" {
			obstacles = append(obstacles, why)
			continue
		}
		m.Shards = append(m.Shards, client.Shard{
			Name: s.Name, Instruments: slices.Sorted(slices.Values(s.Status.Instruments)), Members: members(s),
		})
	}
	return m, append(obstacles, unowned(shards, wanted, owners)...)
}

// unowned says, grouped by the reason, which instruments have no shard.
func unowned(shards []*v1.InstrumentShard, wanted []string, owners map[string]string) []string {
	var reasons []string
	names := make(map[string][]string)
	for _, name := range wanted {
		if owners[name] != "" {
			continue
		}
		why := whyUnowned(shards, name)
		if names[why] == nil {
			reasons = append(reasons, why)
		}
		names[why] = append(names[why], name)
	}
	for i, why := range reasons {
		reasons[i] = listed(names[why]) + ": " + why
	}
	return reasons
}

func whyUnowned(shards []*v1.InstrumentShard, name string) string {
	for _, s := range shards {
		if slices.Contains(s.Spec.Instruments, name) {
			return fmt.Sprintf("shard %s asks for it, and the operator has not answered: see that it runs and watches this namespace", s.Name)
		}
	}
	return "no InstrumentShard names it: apply one"
}

// listedMax is how many instruments a message names.
const listedMax = 8

func listed(names []string) string {
	if len(names) <= listedMax {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:listedMax], ", "), len(names)-listedMax)
}
