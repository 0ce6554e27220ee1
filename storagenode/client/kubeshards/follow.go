package kubeshards

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

// follower carries what the InstrumentShards say to a client.
type follower struct {
	w       *Watcher
	client  *client.Client
	shards  map[string]*followed // those of the client's map, by name
	ignored string               // what was said last of changes that are not followed
}

// followed is a shard of the client's map.
type followed struct {
	def     client.Shard
	members []client.Member
	uid     types.UID // of the InstrumentShard, empty until it is seen first
	kept    string    // why the members stay as they are, "" if they do not
}

// apply sets the members of all shards, and reports whether any changed.
func (f *follower) apply(shards []*v1.InstrumentShard) (changed bool) {
	present := make(map[string]*v1.InstrumentShard)
	for _, s := range shards {
		present[s.Name] = s
	}
	for _, def := range f.client.Map().Shards {
		if f.applyOne(f.shards[def.Name], present[def.Name]) {
			changed = true
		}
	}
	f.tellIgnored(present)
	return changed
}

func (f *follower) applyOne(to *followed, s *v1.InstrumentShard) (changed bool) {
	why := to.follows(s)
	if why == "" {
		if next := members(s); !slices.Equal(next, to.members) {
			if err := f.client.SetMembers(s.Name, next); err != nil {
				why = err.Error()
			} else {
				f.w.config.Log.Info("members of a shard changed", "shard", s.Name, "members", ids(next), "before", ids(to.members))
				to.members, changed = next, true
			}
		}
	}
	if why != to.kept && why != "" {
		f.w.config.Log.Warn("a shard keeps the members that it had", "shard", to.def.Name, "because", why, "members", ids(to.members))
	}
	to.kept = why
	f.w.gauges.setMembers(to.def.Name, len(to.members))
	return changed
}

// follows returns why the members are not taken from s, "" if they are.
func (to *followed) follows(s *v1.InstrumentShard) string {
	if s == nil {
		return "there is no InstrumentShard of that name any more"
	}
	if to.uid == "" {
		to.uid = s.UID
	}
	switch {
	case s.UID != to.uid:
		return "the InstrumentShard was deleted and created again, and is another shard"
	case len(members(s)) == 0:
		return "no member has a pod"
	}
	return ""
}

func ids(list []client.Member) string {
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].ID
	}
	return strings.Join(names, " ")
}

// tellIgnored says which instruments have come, gone or moved since the map was
// taken: that is followed at the next start.
func (f *follower) tellIgnored(present map[string]*v1.InstrumentShard) {
	differ := make(map[string]bool)
	for _, to := range f.shards {
		if s := present[to.def.Name]; s != nil {
			difference(differ, to.def.Instruments, s.Status.Instruments)
		}
	}
	for name, s := range present {
		if f.shards[name] == nil && s.Status.Bootstrapped {
			difference(differ, nil, s.Status.Instruments)
		}
	}
	f.w.gauges.setIgnored(len(differ))
	said := ""
	if len(differ) > 0 {
		said = listed(slices.Sorted(maps.Keys(differ)))
	}
	if said != f.ignored && said != "" {
		f.w.config.Log.Warn("instruments came to a shard, left one or moved, which is ignored until the next start",
			"instruments", said, "count", fmt.Sprint(len(differ)))
	}
	f.ignored = said
}

// difference notes the names that are in one of the lists only.
func difference(into map[string]bool, a, b []string) {
	for _, name := range a {
		if !slices.Contains(b, name) {
			into[name] = true
		}
	}
	for _, name := range b {
		if !slices.Contains(a, name) {
			into[name] = true
		}
	}
}
