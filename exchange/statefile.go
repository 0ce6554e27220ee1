package exchange

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/countinghouse/countinghouse/exchange/rebuild"
	"github.com/countinghouse/countinghouse/record"
)

// knownState is what the state file holds: JSON, so that an operator can read it.
type knownState struct {
	Format  int    `json:"format"` // 1
	Cluster string `json:"cluster"`
	// Global and Hash are the last known state; Global 0 means none is known.
	Global uint64    `json:"global"`
	Hash   string    `json:"hash"`
	Time   time.Time `json:"time"`
	// Incarnation is the one that the subscriber used last.
	Incarnation uint64 `json:"incarnation"`
	// NeedsStores is set from the first start after the machine went down until
	// one has compared outbox and stores: what the outbox lost only they know.
	NeedsStores bool `json:"needs_stores,omitempty"`
	// Dropped is how many records the policy Drop has cost, as last noted. Above
	// zero, what outbox and stores hold is no whole history any more.
	Dropped uint64 `json:"dropped,omitempty"`
	// CRC32C is that of the file with an empty string here, 8 hexadecimal digits.
	CRC32C string `json:"crc32c"`

	path    string
	checked bool
}

const stateFormat = 1

// statePath returns the state file that belongs to an outbox.
func statePath(outboxDir string) string { return outboxDir + ".state" }

// loadState reads the state file; a missing one is a state that is not known.
func loadState(outboxDir, cluster string) (*knownState, error) {
	s := &knownState{Format: stateFormat, Cluster: cluster, path: statePath(outboxDir)}
	b, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state file: %w", err)
	}
	read := knownState{path: s.path}
	if err := json.Unmarshal(b, &read); err != nil {
		return nil, fmt.Errorf("state file %s: %w; remove it to start without the comparison", s.path, err)
	}
	switch {
	case read.Format != stateFormat:
		return nil, fmt.Errorf("state file %s: format %d; this build reads %d", s.path, read.Format, stateFormat)
	case read.Cluster != cluster:
		return nil, fmt.Errorf("state file %s: belongs to cluster %q, this is %q: name another outbox directory", s.path, read.Cluster, cluster)
	}
	if want, err := read.checksum(); err != nil || want != read.CRC32C {
		return nil, fmt.Errorf("state file %s: %w: its CRC32C is %s, it says %q; remove it to start without the comparison, "+
			"but not after the machine went down: without it the exchange may start without asking the stores", s.path, record.ErrCorrupt, want, read.CRC32C)
	}
	return &read, nil
}

// checksum returns the CRC32C of the state.
func (s *knownState) checksum() (string, error) {
	bare := *s
	bare.CRC32C = ""
	b, err := json.MarshalIndent(&bare, "", "  ")
	return fmt.Sprintf("%08x", crc32.Checksum(b, record.Castagnoli)), err
}

// whole reports a history that records were dropped from, which no start can
// replay.
func (s *knownState) whole(outboxDir string) error {
	if s.Dropped == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s notes that %d records or more were dropped under the policy drop: outbox and shards hold a part of the history, "+
		"from which the exchange can be neither restarted nor rebuilt; start anew with an empty outbox and an empty cluster: "+
		"remove %s and %s and the shards' data", ErrDropped, s.path, s.Dropped, outboxDir, s.path)
}

// store replaces the state file: either the old or the new one is there, whole,
// at any instant.
func (s *knownState) store() error {
	var err error
	if s.CRC32C, err = s.checksum(); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	temporary := s.path + ".tmp"
	if err := writeSynced(temporary, append(b, '\n')); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if err := os.Rename(temporary, s.path); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	return syncDir(filepath.Dir(s.path))
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("state file: sync %s: %w", dir, err)
	}
	return nil
}

// compare checks the replay, which stands at Global, against the known state.
func (s *knownState) compare(b *rebuild.Rebuilder) error {
	if b.Global() != s.Global {
		return fmt.Errorf("%w: %s notes a state after record %d, which does not end a transaction", ErrDiverged, s.path, s.Global)
	}
	if hash := b.State().Hash(); hash != s.Hash {
		return fmt.Errorf("%w: the replay of records 1 to %d leads to state %.16s…, but %s notes %.16s… of %s",
			ErrDiverged, s.Global, hash, s.path, s.Hash, s.Time.Format(time.RFC3339))
	}
	s.checked = true
	return nil
}

// reached reports whether a replay that ended at global came as far as the known
// state.
func (s *knownState) reached(global uint64) error {
	if global >= s.Global {
		return nil
	}
	return fmt.Errorf("%w: %s knows the state after record %d, but the records end with %d: %d are lost; "+
		"if that is so and must be accepted, remove the file", ErrDiverged, s.path, s.Global, global, s.Global-global)
}
