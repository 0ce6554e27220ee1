package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// RecoveryVersion is the version of the file of recoveries that this build writes
// and reads.
const RecoveryVersion = 1

const (
	// recoveriesKept bounds the file of recoveries: each is a decision of a person.
	recoveriesKept = 64
	// probeTimeout is how long a member that is given up has to answer.
	probeTimeout = 2 * time.Second
)

// ErrNoRecovery means that the member must not or can not be made its shard's only
// voter; the error says why.
var ErrNoRecovery = errors.New("not recovered")

var tokenPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// CheckToken says what is wrong with the token of a recovery.
func CheckToken(token string) error {
	if !tokenPattern.MatchString(token) {
		return fmt.Errorf("token %q: use 1 to 64 letters, digits, '.', '_' and '-'", token)
	}
	return nil
}

// Generation returns how often the shard was recovered from a lost quorum, of a
// term of its Raft log. A recovery goes on in the first term of the next
// generation, which no member of the one before can have been in: so the same term
// never has two leaders, and every message says which generation it is of.
func Generation(term uint64) uint64 { return term >> generationShift }

const generationShift = 32

// firstTerm returns the term of the entry that a generation begins with.
func firstTerm(generation uint64) uint64 { return generation << generationShift }

// Recovery is what was decided about a member whose shard has lost its quorum, and
// whether it was carried out.
type Recovery struct {
	Token      string    `json:"token"`
	Generation uint64    `json:"generation"`
	Planned    time.Time `json:"planned"`
	// Index of the log entry that makes the member the only voter; its term is the
	// first of the generation. 0 where the member was the only voter already.
	Index uint64 `json:"index"`
	// Address of the member in the membership.
	Address string `json:"address"`
	// GivenUp are the other members of the membership before.
	GivenUp []Peer `json:"given_up,omitempty"`
	Done    bool   `json:"done"`
}

// recoveries is the content of the file, which is sealed.
type recoveries struct {
	Format     int        `json:"format"`
	Recoveries []Recovery `json:"recoveries"` // oldest first; only the last may be open
}

// ReadRecoveries returns the recoveries of a data directory, oldest first.
func ReadRecoveries(fs vfs.FS, dir string) ([]Recovery, error) {
	name := fs.PathJoin(dir, recoveryFile)
	b, err := readFile(fs, name)
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if b, err = unseal(name, b); err != nil {
		return nil, fmt.Errorf("%w: replace the member", err)
	}
	var c recoveries
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%s: %w: %w: replace the member", name, record.ErrCorrupt, err)
	}
	if c.Format > RecoveryVersion {
		return nil, fmt.Errorf("%s: %w: %d, this build knows %d: use the newer build", name, ErrFormat, c.Format, RecoveryVersion)
	}
	return c.Recoveries, nil
}

func writeRecoveries(fs vfs.FS, dir string, all []Recovery) error {
	if n := len(all); n > recoveriesKept {
		all = all[n-recoveriesKept:]
	}
	b, err := json.MarshalIndent(recoveries{RecoveryVersion, all}, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(fs, fs.PathJoin(dir, recoveryFile), seal(b))
}

// recover makes this member its shard's only voter, if it was told to and has not
// done so for the same token. It is called while no Raft instance runs, after the
// store and the log were found whole.
//
// Raft's own RecoverCluster is not used: it applies the log outside of the order in
// which the store is brought up to the snapshots, and drops the log in a step of its
// own. Here the decision is written down first, and then carried out in steps of
// which each may be repeated:
//
//  1. The file of recoveries names token, generation and index. From here on every
//     start carries the recovery out, whatever it is told.
//  2. The term is raised to the generation's first one.
//  3. One entry with the membership of this member alone is appended to the log, in
//     that term. Everything before it stays, and is committed with it, in the way of
//     every entry.
//  4. The file says that it is done.
func (r *Replica) recover() error {
	all, err := ReadRecoveries(r.fs, r.cfg.DataDir)
	if err != nil {
		return err
	}
	if n := len(all); n > 0 {
		if all, err = r.carryOut(all); err != nil {
			return fmt.Errorf("recovery %s: %w", all[n-1].Token, err)
		}
	}
	if token := r.cfg.Recover; token != "" && !slices.ContainsFunc(all, func(p Recovery) bool { return p.Token == token }) {
		if all, err = r.decide(all, token); err != nil {
			return fmt.Errorf("recovery %s: %w", token, err)
		}
	}
	r.recoveries = all
	return nil
}

// decide writes the plan of a recovery down and carries it out.
func (r *Replica) decide(all []Recovery, token string) ([]Recovery, error) {
	if err := r.trimLog(); err != nil { // as every start does, before the log is gone on with
		return all, err
	}
	plan, err := r.planRecovery(token)
	if err != nil {
		return all, err
	}
	all = append(all, *plan)
	if err := writeRecoveries(r.fs, r.cfg.DataDir, all); err != nil {
		return all, err
	}
	return r.carryOut(all)
}

// planRecovery looks whether the member can and may be recovered.
func (r *Replica) planRecovery(token string) (*Recovery, error) {
	last, servers, err := r.logState()
	if err != nil {
		return nil, err
	}
	term, err := r.stable.GetUint64([]byte("CurrentTerm"))
	if err != nil && !notStored(err) {
		return nil, err
	}
	own, ok := find(servers, r.cfg.ID)
	switch {
	case last.index == 0 || len(servers) == 0:
		return nil, fmt.Errorf("%w: %s holds nothing to go on from: name another survivor", ErrNoRecovery, r.cfg.DataDir)
	case !ok:
		return nil, fmt.Errorf("%w: member %s is not in the last membership that it knows: it was removed; name another survivor", ErrNoRecovery, r.cfg.ID)
	}
	plan := &Recovery{
		Token: token, Generation: Generation(max(term, last.term)), Planned: r.cfg.WallClock().UTC().Truncate(time.Second), Address: string(own.Address),
	}
	if r.cfg.Address != "" {
		plan.Address = r.cfg.Address
	}
	for _, s := range servers {
		if s.ID != own.ID {
			plan.GivenUp = append(plan.GivenUp, Peer{ID: string(s.ID), Address: string(s.Address)})
		}
	}
	if voters := votersOf(servers); own.Suffrage == raft.Voter && len(voters) == 1 {
		plan.GivenUp = nil
		return plan, nil // it leads by itself
	}
	if err := r.quorumElsewhere(servers); err != nil {
		return nil, err
	}
	plan.Generation++
	plan.Index = last.index + 1
	return plan, nil
}

func votersOf(servers []raft.Server) (voters []raft.Server) {
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s)
		}
	}
	return voters
}

// logState returns the log's last entry and the last membership in it, or those of
// the newest snapshot.
func (r *Replica) logState() (last entryID, servers []raft.Server, err error) {
	newest, err := r.snapshots.newest()
	if err != nil {
		return last, nil, err
	}
	if newest != nil {
		last, servers = entryID{newest.Raft.Index, newest.Raft.Term}, newest.Raft.Configuration.Servers
	}
	first, firstErr := r.logs.FirstIndex()
	end, lastErr := r.logs.LastIndex()
	if err := errors.Join(firstErr, lastErr); err != nil || end == 0 {
		return last, servers, err
	}
	for i := max(first, last.index+1); i <= end; i++ {
		var entry raft.Log
		if err := r.logs.GetLog(i, &entry); err != nil {
			return last, nil, fmt.Errorf("log entry %d: %w", i, err)
		}
		if last = (entryID{entry.Index, entry.Term}); entry.Type == raft.LogConfiguration {
			servers = raft.DecodeConfiguration(entry.Data).Servers
		}
	}
	return last, servers, nil
}

// quorumElsewhere refuses a recovery while another member leads, or enough of them
// answer to elect a leader: then nothing is lost, and they would be stopped by it.
func (r *Replica) quorumElsewhere(servers []raft.Server) error {
	var mu sync.Mutex
	var answer []string
	leader := ""
	var wg sync.WaitGroup
	voters := votersOf(servers)
	for _, s := range voters {
		if string(s.ID) == r.cfg.ID {
			continue
		}
		wg.Go(func() {
			st, err := r.probe(string(s.Address))
			if err != nil || st.Id != string(s.ID) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if answer = append(answer, st.Id); st.State == "leader" {
				leader = st.Id
			}
		})
	}
	wg.Wait()
	slices.Sort(answer)
	switch quorum := len(voters)/2 + 1; {
	case leader != "":
		return fmt.Errorf("%w: member %s leads the shard: it has a quorum, and nothing is to be recovered", ErrNoRecovery, leader)
	case len(answer)+1 >= quorum:
		return fmt.Errorf("%w: %s answer, and with this member they are %d of %d voters, which can elect a leader: start it without a recovery, or stop them for good first",
			ErrNoRecovery, strings.Join(answer, ", "), len(answer)+1, len(voters))
	}
	return nil
}

// carryOut finishes the last recovery if it is open. Every step may be repeated.
func (r *Replica) carryOut(all []Recovery) ([]Recovery, error) {
	p := &all[len(all)-1]
	if p.Done {
		return all, nil
	}
	if p.Index > 0 {
		if err := r.becomeOnlyVoter(p); err != nil {
			return all, err
		}
	}
	p.Done = true
	if err := writeRecoveries(r.fs, r.cfg.DataDir, all); err != nil {
		return all, err
	}
	r.cfg.Logger.Warn("recovered from a lost quorum: this member is its shard's only voter; what the others acknowledged without it is lost",
		"token", p.Token, "generation", p.Generation, "index", p.Index, "givenUp", p.GivenUp)
	return all, nil
}

func (r *Replica) becomeOnlyVoter(p *Recovery) error {
	last, _, err := r.logState()
	if err != nil {
		return err
	}
	term := firstTerm(p.Generation)
	switch {
	case last == entryID{p.Index, term}:
		return nil // the step before the last one
	case last.index+1 != p.Index || last.term >= term:
		return fmt.Errorf("%w: the log ends with entry %d of term %d, and entry %d of term %d was to follow: replace the member", record.ErrCorrupt, last.index, last.term, p.Index, term)
	}
	if err := r.stable.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(r.cfg.ID), Address: raft.ServerAddress(p.Address)}}}
	return r.logs.StoreLog(&raft.Log{
		Index: p.Index, Term: term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone), AppendedAt: time.Now(),
	})
}

// recovered returns the last recovery that was carried out, nil for none.
func (r *Replica) recovered() *Recovery {
	if n := len(r.recoveries); n > 0 {
		return &r.recoveries[n-1]
	}
	return nil
}

// proto returns nil for nil.
func (p *Recovery) proto() *storagepb.Recovery {
	if p == nil {
		return nil
	}
	out := &storagepb.Recovery{Token: p.Token, Generation: p.Generation, AtUnixNanos: p.Planned.UnixNano(), Index: p.Index}
	for _, m := range p.GivenUp {
		out.GivenUp = append(out.GivenUp, &storagepb.Member{Id: m.ID, Address: m.Address})
	}
	return out
}

// RecoverOffline makes the stopped member of cfg.DataDir its shard's only voter, as
// a start with cfg.Recover does, and returns what was done. Of cfg only DataDir,
// Recover, FS, OpenStable, Logger and Transport count; Address may move the member.
// Errors match those of Open, and ErrNoRecovery.
func RecoverOffline(cfg Config) (Recovery, error) {
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	id, err := ReadIdentity(cfg.FS, cfg.DataDir)
	if err != nil {
		return Recovery{}, err
	}
	if err := CheckToken(cfg.Recover); err != nil {
		return Recovery{}, err
	}
	cfg.Cluster, cfg.Shard, cfg.ID, cfg.LogStore = id.Cluster, id.Shard, id.ID, id.LogStore
	r := newReplica(cfg.withDefaults())
	err = r.openFiles()
	if err == nil {
		err = r.recover()
	}
	if err = errors.Join(err, r.closeFiles()); err != nil {
		return Recovery{}, err
	}
	return *r.recovered(), nil
}

// Survey is what a stopped member knows of its shard.
type Survey struct {
	Identity   Identity
	Members    []Peer
	LastIndex  uint64 // of the log or the newest snapshot
	LastTerm   uint64
	Recoveries []Recovery
}

// SurveyDataDir looks at the data directory of a stopped member. It changes nothing
// but what every start cleans up.
func SurveyDataDir(cfg Config) (Survey, error) {
	var out Survey
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	id, err := ReadIdentity(cfg.FS, cfg.DataDir)
	if err != nil {
		return out, err
	}
	out.Identity = id
	cfg.Cluster, cfg.Shard, cfg.ID, cfg.LogStore = id.Cluster, id.Shard, id.ID, id.LogStore
	r := newReplica(cfg.withDefaults())
	defer func() { _ = r.closeFiles() }()
	if err := r.openFiles(); err != nil {
		return out, err
	}
	last, servers, err := r.logState()
	if err != nil {
		return out, err
	}
	out.LastIndex, out.LastTerm = last.index, last.term
	for _, s := range servers {
		out.Members = append(out.Members, Peer{ID: string(s.ID), Address: string(s.Address)})
	}
	out.Recoveries, err = ReadRecoveries(cfg.FS, cfg.DataDir)
	return out, err
}

func (r *Replica) probe(address string) (*storagepb.StatusResponse, error) {
	conn, err := r.transport.Conn(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, probeTimeout)
	defer cancel()
	return storagepb.NewAdminClient(conn).Status(ctx, &storagepb.StatusRequest{})
}
