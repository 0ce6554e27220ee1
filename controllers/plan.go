package controllers

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	v1 "github.com/countinghouse/countinghouse/api/v1"
	"github.com/countinghouse/countinghouse/controllers/resource"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// StepKind is a kind of what the operator does to a shard.
type StepKind string

// The kinds.
const (
	StepCreate      StepKind = "create"   // a first member gets its volume and its pod
	StepGrow        StepKind = "grow"     // a volume becomes larger
	StepInstruments StepKind = "assign"   // the shard is told what it owns
	StepJoin        StepKind = "join"     // a member gets a volume and a pod, and becomes a learner, then a voter
	StepTransfer    StepKind = "transfer" // the leadership moves
	StepLeave       StepKind = "leave"    // a member leaves the shard, its pod ends
	StepRestart     StepKind = "restart"  // a member's pod is replaced
)

// Step is one thing that the operator would do.
type Step struct {
	Kind   StepKind `json:"kind"`
	Member string   `json:"member,omitempty"`
	What   string   `json:"what"` // for people
}

// Plan is what the operator would do, in its order.
type Plan struct {
	Steps    []Step   `json:"steps"`
	Warnings []string `json:"warnings"`
}

// Situation is what a plan begins with.
type Situation struct {
	// Live is the shard as it is, nil for none.
	Live *v1.InstrumentShard
	// Wanted is the shard as the API server would store it.
	Wanted *v1.InstrumentShard
	// Others are the shards of the namespace; Live may be among them.
	Others []v1.InstrumentShard
	// Leader is the leader's status, nil if none answers: what the shard's status says
	// is gone by then.
	Leader *storagepb.StatusResponse
	Pods   map[string]*corev1.Pod                   // by member
	Claims map[string]*corev1.PersistentVolumeClaim // by member
}

// MakePlan returns what the operator would do if the shard was what is wanted. It asks
// the same functions as the operator, one step after the other. A step may be refused
// when its time comes, and is then repeated until it is not.
func MakePlan(in Situation) (*Plan, error) {
	p := &planner{in: in, plan: &Plan{Steps: []Step{}, Warnings: []string{}}}
	hash, err := resource.SpecHash(in.Wanted)
	if err != nil {
		return nil, err
	}
	p.warnOfSpec()
	if in.Live == nil || in.Live.Status.NextMember == 0 {
		p.create()
		return p.plan, nil
	}
	p.members = slices.Clone(in.Live.Status.Members)
	p.next = in.Live.Status.NextMember
	p.raft = p.view()
	p.grow()
	p.instruments()
	p.membership()
	p.rollout(hash)
	p.warnOfSteps()
	return p.plan, nil
}

// planner is a plan in the making: what the members will be after its steps so far.
type planner struct {
	in      Situation
	plan    *Plan
	members []v1.MemberStatus
	next    int32
	raft    *raftView
	joined  map[string]bool // since the beginning
}

func (p *planner) step(kind StepKind, member, format string, args ...any) {
	p.plan.Steps = append(p.plan.Steps, Step{kind, member, fmt.Sprintf(format, args...)})
}

func (p *planner) warn(format string, args ...any) {
	p.plan.Warnings = append(p.plan.Warnings, fmt.Sprintf(format, args...))
}

// view is the membership as the leader knows it, or else as the status does.
func (p *planner) view() *raftView {
	if p.in.Leader != nil {
		v := viewOf(p.in.Leader)
		v.members = maps.Clone(v.members)
		return v
	}
	p.warn("no member answers as the leader: the membership is taken from the shard's status, and nothing is done before one does")
	v := &raftView{leader: p.in.Live.Status.Leader, members: map[string]*storagepb.Member{}, instruments: p.in.Live.Status.Instruments}
	for _, m := range p.members {
		switch m.Role {
		case v1.RoleLeader, v1.RoleFollower, v1.RoleLearner:
			v.members[m.ID] = &storagepb.Member{Id: m.ID, Voter: m.Role != v1.RoleLearner}
		}
	}
	return v
}

func (p *planner) create() {
	s := p.in.Wanted
	for n := range s.Spec.Replicas {
		id := resource.MemberName(s.Name, n)
		p.step(StepCreate, id, "member %s gets a volume of %s and a pod", id, s.Spec.Storage.Size.String())
	}
	p.instruments()
}

func (p *planner) grow() {
	for i := range p.members {
		m := &p.members[i]
		claim := p.in.Claims[m.ID]
		if stays(m) && claim != nil && resource.ClaimGrows(p.in.Wanted, claim) {
			p.step(StepGrow, m.ID, "volume %s grows from %s to %s, if its storage class allows it", m.ID,
				claim.Spec.Resources.Requests.Storage(), p.in.Wanted.Spec.Storage.Size.String())
		}
	}
}

func (p *planner) instruments() {
	var have []string
	if p.raft != nil {
		have = p.raft.instruments
	}
	own, refused := instrumentsOf(p.in.Wanted, p.in.Others)
	for _, r := range refused {
		p.warn("instrument %s is refused: shard %s has it already, or is older", r.Name, r.Owner)
	}
	gained, lost := without(own, have), without(have, own)
	var what []string
	if len(gained) > 0 {
		what = append(what, "gains "+summary(gained))
	}
	if len(lost) > 0 {
		what = append(what, "loses "+summary(lost))
		p.warn("the shard keeps instruments that hold records: it refuses the whole list while one of %s does", strings.Join(lost, ", "))
	}
	if len(what) > 0 {
		p.step(StepInstruments, "", "the shard %s", strings.Join(what, " and "))
	}
}

// without returns the names of a that are not in b.
func without(a, b []string) (out []string) {
	for _, name := range a {
		if !slices.Contains(b, name) {
			out = append(out, name)
		}
	}
	return out
}

// movesMax bounds the moves of a plan: more than any change takes.
const movesMax = 64

func (p *planner) membership() {
	p.joined = map[string]bool{}
	for range movesMax {
		m := nextMove(p.members, p.raft, p.in.Wanted.Spec.Replicas)
		switch m.kind {
		case moveNone:
			return
		case moveEnlist:
			p.members, p.next = enlisted(p.in.Wanted.Name, p.members, p.next)
		case moveLearn:
			p.joined[m.id] = true
			p.raft.members[m.id] = &storagepb.Member{Id: m.id}
			p.step(StepJoin, m.id, "member %s gets a volume of %s and a pod, catches up as a learner, and becomes a voter", m.id, p.in.Wanted.Spec.Storage.Size.String())
		case movePromote:
			if !p.joined[m.id] {
				p.step(StepJoin, m.id, "learner %s becomes a voter once it has caught up", m.id)
			}
			p.raft.members[m.id] = &storagepb.Member{Id: m.id, Voter: true}
		case moveRemove:
			p.leave(m.id)
		}
	}
}

func (p *planner) leave(id string) {
	if id == p.raft.leader {
		p.transfer("which is to leave")
		return
	}
	volume := "its volume is deleted"
	if p.in.Wanted.Spec.Storage.Retention.WhenScaled == v1.RetentionRetain {
		volume = "its volume is kept"
	}
	i := slices.IndexFunc(p.members, func(m v1.MemberStatus) bool { return m.ID == id })
	if p.members[i].Role == v1.RoleLost {
		volume = "it has lost its volume"
	}
	p.step(StepLeave, id, "member %s leaves, its pod ends, %s", id, volume)
	delete(p.raft.members, id)
	p.members = slices.Delete(p.members, i, i+1)
}

// transfer moves the leadership to the voter that lags least, as the shard does.
func (p *planner) transfer(why string) {
	from := p.raft.leader
	var voters []string
	for id, m := range p.raft.members {
		if m.Voter && id != from {
			voters = append(voters, id)
		}
	}
	slices.SortFunc(voters, func(a, b string) int {
		return cmp.Or(cmp.Compare(p.raft.members[a].Lag, p.raft.members[b].Lag), cmp.Compare(a, b))
	})
	if len(voters) > 0 {
		p.raft.leader = voters[0]
	}
	p.step(StepTransfer, from, "leadership moves off member %s, %s", from, why)
}

func (p *planner) rollout(hash string) {
	done := map[string]bool{}
	for range movesMax {
		id, ok := nextRestart(p.raft, func(id string) bool {
			pod := p.in.Pods[id]
			return pod != nil && !done[id] && pod.Annotations[resource.AnnotationSpecHash] != hash
		})
		switch {
		case !ok:
			return
		case id == p.raft.leader && p.raft.voters() > 1:
			p.transfer("whose pod is to be replaced")
		default:
			done[id] = true
			p.step(StepRestart, id, "the pod of member %s is replaced, once the others can do without", id)
		}
	}
}

func (p *planner) warnOfSpec() {
	s := p.in.Wanted
	if s.Spec.Paused {
		p.warn("spec.paused is set: nothing of this is done before it is not")
	}
	if s.Spec.Replicas == 1 && (p.in.Live == nil || p.in.Live.Spec.Replicas != 1) {
		p.warn("with one member the shard survives the loss of none: its restart stops writes, its lost volume loses the records")
	}
}

func (p *planner) warnOfSteps() {
	count := map[StepKind]int{}
	for _, s := range p.plan.Steps {
		count[s.Kind]++
	}
	if n := count[StepRestart]; n > 0 {
		p.warn("%d pods are replaced, one at a time", n)
	}
	if count[StepRestart] > 0 && p.raft.voters() == 1 {
		p.warn("the shard has one voter: writes wait while its pod is replaced")
	}
	if c := count[StepLeave]; c > 0 && p.in.Wanted.Spec.Storage.Retention.WhenScaled == v1.RetentionDelete {
		p.warn("volumes of members that leave are deleted (spec.storage.retention.whenScaled)")
	}
}
