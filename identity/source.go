package identity

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultPoll is how often Run looks at the files.
const DefaultPoll = time.Second

// readAttempts is how often files that change while they are read are read again
// at once.
const readAttempts = 3

// Options tune a Source. The zero value of a field takes its default.
type Options struct {
	// Accept says whether the certificate is the right one for this process;
	// default: any is.
	Accept func(Identity) error
	// Poll is how often Run looks at the files; default DefaultPoll.
	Poll time.Duration
	// Now tells the time that certificates are judged by; default time.Now.
	Now func() time.Time
	// Logger is told of changes and of files that can not be used; default: none.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Accept == nil {
		o.Accept = func(Identity) error { return nil }
	}
	if o.Poll <= 0 {
		o.Poll = DefaultPoll
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Expect returns an Accept that takes only the identity given.
func Expect(want Identity) func(Identity) error {
	return func(got Identity) error {
		if got != want {
			return fmt.Errorf("the certificate is that of %s, not of %s", got, want)
		}
		return nil
	}
}

// Source is a certificate, its key and the authorities that are trusted, as they
// are now. What can not be used is not: the last good files stay in force. It is
// safe for concurrent use.
type Source struct {
	dir     string // empty: the set never changes
	options Options
	current atomic.Pointer[set]
	conns   connections
	metrics metrics

	mu      sync.Mutex
	seen    []os.FileInfo // of the files that were read last; guarded by mu
	problem string        // why what is in the files is not in use, or empty; guarded by mu
}

// Open returns a source of the files in dir. It looks at them at every handshake;
// who has long-lived connections calls Run as well.
func Open(dir string, o Options) (*Source, error) {
	s := &Source{dir: dir, options: o.withDefaults()}
	s.metrics = newMetrics(s)
	seen, next, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("certificates in %s: %w", dir, err)
	}
	s.seen = seen
	s.current.Store(next)
	return s, nil
}

// FromPEM returns a source that never changes.
func FromPEM(certPEM, keyPEM, trustPEM []byte, o Options) (*Source, error) {
	s := &Source{options: o.withDefaults()}
	s.metrics = newMetrics(s)
	next, err := s.judge(certPEM, keyPEM, trustPEM)
	if err != nil {
		return nil, err
	}
	s.current.Store(next)
	return s, nil
}

// Run follows the files, and ends connections whose peers are not trusted any
// more, until ctx ends.
func (s *Source) Run(ctx context.Context) {
	ticker := time.NewTicker(s.options.Poll)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.Refresh()
			s.Sweep()
		case <-ctx.Done():
			return
		}
	}
}

// Self returns the identity of the own certificate.
func (s *Source) Self() Identity { return s.current.Load().self }

// Trusted returns the fingerprints of the authorities that are trusted, sorted.
func (s *Source) Trusted() []string { return slices.Clone(s.current.Load().fingerprints) }

// Issuer returns the fingerprint of the trusted authority that has issued the own
// certificate, or nothing if none has.
func (s *Source) Issuer() string {
	now := s.current.Load()
	for _, ca := range now.authorities {
		if now.cert.Leaf.CheckSignatureFrom(ca) == nil {
			return Fingerprint(ca)
		}
	}
	return ""
}

// Expires returns when the own certificate expires.
func (s *Source) Expires() time.Time { return s.current.Load().cert.Leaf.NotAfter }

// Refresh takes the files into use if they have changed and are good.
func (s *Source) Refresh() {
	if s.dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
}

// glance is Refresh unless another goroutine is at it.
func (s *Source) glance() {
	if s.dir == "" || !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	s.refresh()
}

// refresh does the work of Refresh. REQUIRES: mu held.
func (s *Source) refresh() {
	if now, err := s.stat(); s.problem == "" && err == nil && same(s.seen, now) {
		return
	}
	seen, next, err := s.load()
	if err != nil {
		s.keep(err)
		return
	}
	before := s.current.Swap(next)
	s.seen, s.problem = seen, ""
	s.metrics.reloads.Inc()
	s.options.Logger.Info("certificates are in use", "dir", s.dir, "identity", next.self.String(),
		"expires", next.cert.Leaf.NotAfter.UTC(), "authorities", len(next.fingerprints),
		"authorities_changed", !slices.Equal(before.fingerprints, next.fingerprints))
}

// keep notes that the files can not be used. REQUIRES: mu held.
func (s *Source) keep(err error) {
	if s.problem == err.Error() {
		return
	}
	s.problem = err.Error()
	s.metrics.failures.Inc()
	s.options.Logger.Error("certificates can not be used, the last good ones stay in force", "dir", s.dir, "error", err)
}

// load reads the files as they are together at one time.
func (s *Source) load() ([]os.FileInfo, *set, error) {
	for range readAttempts {
		before, err := s.stat()
		if err != nil {
			return nil, nil, err
		}
		var b [len(files)][]byte
		for i, name := range files {
			if b[i], err = os.ReadFile(filepath.Join(s.dir, name)); err != nil {
				return nil, nil, err
			}
		}
		after, err := s.stat()
		if err != nil || !same(before, after) {
			continue
		}
		next, err := s.judge(b[0], b[1], b[2])
		return after, next, err
	}
	return nil, nil, fmt.Errorf("the files change while they are read")
}

// judge returns the set if it can be used. Who changes identity while running
// would be refused by everyone it knows.
func (s *Source) judge(certPEM, keyPEM, trustPEM []byte) (*set, error) {
	next, err := parse(certPEM, keyPEM, trustPEM)
	if err != nil {
		return nil, err
	}
	if err := s.options.Accept(next.self); err != nil {
		return nil, err
	}
	if now := s.current.Load(); now != nil && now.self != next.self {
		return nil, fmt.Errorf("the certificate is that of %s, while this process is %s", next.self, now.self)
	}
	return next, next.usable(s.options.Now())
}

var files = [...]string{CertFile, KeyFile, TrustFile}

func (s *Source) stat() ([]os.FileInfo, error) {
	out := make([]os.FileInfo, len(files))
	for i, name := range files {
		var err error
		if out[i], err = os.Stat(filepath.Join(s.dir, name)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// same reports whether two looks at the files saw the same ones.
func same(a, b []os.FileInfo) bool {
	return slices.EqualFunc(a, b, func(x, y os.FileInfo) bool {
		return os.SameFile(x, y) && x.Size() == y.Size() && x.ModTime().Equal(y.ModTime())
	})
}
