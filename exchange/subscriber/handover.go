package subscriber

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/countinghouse/countinghouse/storagenode/client"
)

// The files in an outbox's directory by which an exchange and a subscriber in
// another process hear of each other. Each is replaced whole. Neither is synced:
// both are void once a writer opens the outbox again, which every one does after
// the machine went down.
const (
	grantName      = "grant"
	reportName     = "report"
	handoverFormat = 1
)

// Grant is an exchange's word that it has fenced all writers before it, and that
// what its outbox holds may be carried under its incarnation.
type Grant struct {
	Format  int    `json:"format"` // 1
	Cluster string `json:"cluster"`
	// Opening is the outbox's incarnation for which the grant holds: it is void as
	// soon as a writer has opened the outbox again.
	Opening uint64 `json:"opening"`
	// Incarnation is that of the epochs with which the streams were opened.
	Incarnation uint64 `json:"incarnation"`
	// Shards are the streams of each shard, by name.
	Shards map[string][]string `json:"shards"`
}

// NewGrant returns the grant for an opening of an outbox.
func NewGrant(m *client.Map, opening, incarnation uint64) *Grant {
	return &Grant{Format: handoverFormat, Cluster: m.Cluster, Opening: opening, Incarnation: incarnation, Shards: streamsOf(m)}
}

func streamsOf(m *client.Map) map[string][]string {
	all := make(map[string][]string, len(m.Shards))
	for i := range m.Shards {
		all[m.Shards[i].Name] = slices.Sorted(slices.Values(m.Shards[i].Instruments))
	}
	return all
}

// Write puts the grant into the outbox's directory.
func (g *Grant) Write(dir string) error { return replace(dir, grantName, g) }

// ReadGrant reads the grant in the outbox's directory. The error wraps
// fs.ErrNotExist when there is none.
func ReadGrant(dir string) (*Grant, error) {
	g := &Grant{}
	return g, load(dir, grantName, g, &g.Format)
}

// Fits reports as an error in which shard's streams m is another map than the one
// that the exchange has.
func (g *Grant) Fits(m *client.Map) error {
	own := streamsOf(m)
	for _, name := range slices.Sorted(maps.Keys(g.Shards)) {
		if !slices.Equal(g.Shards[name], own[name]) {
			return fmt.Errorf("%w: shard %s has the streams [%s], but [%s] for the exchange", ErrOtherShards, name,
				strings.Join(own[name], " "), strings.Join(g.Shards[name], " "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		if _, ok := g.Shards[name]; !ok {
			return fmt.Errorf("%w: the exchange has no shard %s", ErrOtherShards, name)
		}
	}
	return nil
}

// ErrOtherShards means that exchange and subscriber were given different maps.
var ErrOtherShards = errors.New("the shard map is not the exchange's")

// Report is a subscriber's word that a lane stopped for good, after which the
// exchange must not trade on.
type Report struct {
	Format  int       `json:"format"`  // 1
	Opening uint64    `json:"opening"` // of the grant under which it happened
	Shard   string    `json:"shard"`
	Kind    string    `json:"kind"` // as in reportKinds
	Error   string    `json:"error"`
	Time    time.Time `json:"time"`
}

var reportKinds = map[string]error{"fenced": ErrFenced, "diverged": ErrDiverged, "missing": ErrMissing, "outbox": ErrOutbox}

// newReport returns the report of an error, nil for one that is not the exchange's
// concern.
func newReport(opening uint64, shard string, err error) *Report {
	for kind, target := range reportKinds {
		if errors.Is(err, target) {
			return &Report{Format: handoverFormat, Opening: opening, Shard: shard, Kind: kind, Error: err.Error(), Time: time.Now().UTC()}
		}
	}
	return nil
}

// cause returns the error that is reported.
func (r *Report) cause() error {
	kind := reportKinds[r.Kind]
	if kind == nil {
		kind = ErrOutbox
	}
	return reportedError{kind: kind, text: r.Error}
}

// reportedError has the words of another process's error.
type reportedError struct {
	kind error
	text string
}

func (e reportedError) Error() string { return "the subscriber process reports: " + e.text }
func (e reportedError) Unwrap() error { return e.kind }

func (r *Report) write(dir string) error { return replace(dir, reportName, r) }

func readReport(dir string) (*Report, error) {
	r := &Report{}
	return r, load(dir, reportName, r, &r.Format)
}

func replace(dir, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("subscriber: %s: %w", name, err)
	}
	path := filepath.Join(dir, name)
	if err = os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("subscriber: %s: %w", name, err)
	}
	return nil
}

func load(dir, name string, v any, format *int) error {
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err == nil && *format != handoverFormat {
		err = fmt.Errorf("format %d; this build reads %d", *format, handoverFormat)
	}
	if err != nil {
		return fmt.Errorf("subscriber: %s: %w", path, err)
	}
	return nil
}
