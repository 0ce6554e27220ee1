package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countinghouse/countinghouse/controllers/certificates"
	"github.com/countinghouse/countinghouse/identity"
	"github.com/countinghouse/countinghouse/identity/identitytest"
	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
)

const tlsTimeout = time.Minute

func role(r identity.Role) identity.Identity { return identity.Identity{Cluster: "test", Role: r} }

var ofShard = identity.Identity{Cluster: "test", Role: identity.Node, Shard: "s1"}

// secured is a shard of three nodes with certificates.
type secured struct {
	t    *testing.T
	m    *client.Map
	dirs map[string]*identitytest.Dir // of the nodes, by member
	logs *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startSecured starts the nodes, which trust ca.
func startSecured(t *testing.T, ca *certificates.Authority) *secured {
	t.Helper()
	s := &secured{t: t, dirs: map[string]*identitytest.Dir{}, logs: new(logBuffer)}
	s.m = &client.Map{Cluster: "test", Shards: []client.Shard{{Name: "s1", Instruments: []string{instrument}}}}
	var peers []string
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		member := client.Member{ID: fmt.Sprintf("s1-%d", i), Address: l.Addr().String()}
		s.m.Shards[0].Members = append(s.m.Shards[0].Members, member)
		peers = append(peers, member.ID+"="+member.Address)
		l.Close()
	}
	for _, member := range s.m.Shards[0].Members {
		d := identitytest.NewDir(t)
		d.Put(identitytest.Pair(t, ca, ofShard), identitytest.Bundle(ca))
		s.dirs[member.ID] = d
		c := config(t)
		c.ID, c.Listen, c.Join, c.Peers, c.Instruments = member.ID, member.Address, false, peers, []string{instrument}
		c.SegmentBytes, c.TLSDir, c.log = 2<<20, d.Path, s.logs
		start(t, c)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.logs)
		}
	})
	return s
}

func (s *secured) client(tls *identity.Source) *client.Client {
	s.t.Helper()
	c, err := client.New(s.m, client.Options{TLS: tls})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// put gives all nodes certificates of an authority, and a bundle.
func (s *secured) put(by *certificates.Authority, trusted ...*certificates.Authority) {
	s.t.Helper()
	for _, d := range s.dirs {
		d.Put(identitytest.Pair(s.t, by, ofShard), identitytest.Bundle(trusted...))
	}
}

// await waits until all nodes say of themselves that they use what was put.
func (s *secured) await(ctx context.Context, c *client.Client, by *certificates.Authority, trusted ...*certificates.Authority) {
	s.t.Helper()
	var want []string
	for _, a := range trusted {
		want = append(want, a.Fingerprint())
	}
	slices.Sort(want)
	for _, m := range s.m.Shards[0].Members {
		for {
			st, err := c.Status(ctx, "s1", m.ID)
			if err == nil && slices.Equal(st.TrustedAuthorities, want) && st.CertificateIssuer == by.Fingerprint() {
				break
			}
			if ctx.Err() != nil {
				s.t.Fatalf("%s: %v, trusts %v, issued by %s", m.ID, err, st.GetTrustedAuthorities(), st.GetCertificateIssuer())
			}
			time.Sleep(10 * time.Millisecond) // the nodes look at their files once a second
		}
	}
}

// follow opens a source of a directory that is followed until the test ends.
func follow(t *testing.T, d *identitytest.Dir, id identity.Identity) *identity.Source {
	t.Helper()
	s, err := identity.Open(d.Path, identity.Options{Accept: identity.Expect(id), Poll: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// The authority is replaced twice while a writer appends: nothing is lost or
// doubled, no error comes up that is not to be tried again, and no process starts
// anew.
func TestRotationUnderLoad(t *testing.T) {
	ca := identitytest.Authority(t, "test")
	s := startSecured(t, ca)
	ctx, cancel := context.WithTimeout(t.Context(), tlsTimeout)
	defer cancel()
	writerDir, operatorDir := identitytest.NewDir(t), identitytest.NewDir(t)
	ids := map[*identitytest.Dir]identity.Identity{writerDir: role(identity.Exchange), operatorDir: role(identity.Operator)}
	put := func(by *certificates.Authority, trusted ...*certificates.Authority) {
		for d, id := range ids {
			d.Put(identitytest.Pair(t, by, id), identitytest.Bundle(trusted...))
		}
		s.put(by, trusted...)
	}
	put(ca, ca)
	operator := s.client(follow(t, operatorDir, ids[operatorDir]))
	w := &writer{c: s.client(follow(t, writerDir, ids[writerDir]))}
	writing, stopWriting := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.run(writing) }()
	w.progress(t, ctx)
	old := identitytest.Source(t, ca, role(identity.Exchange))
	for range 2 {
		next := identitytest.Authority(t, "test")
		for _, step := range []struct {
			by      *certificates.Authority
			trusted []*certificates.Authority
		}{{ca, []*certificates.Authority{ca, next}}, {next, []*certificates.Authority{ca, next}}, {next, []*certificates.Authority{next}}} {
			put(step.by, step.trusted...)
			s.await(ctx, operator, step.by, step.trusted...)
			w.progress(t, ctx)
		}
		ca = next
	}
	stopWriting()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf("%d records acknowledged, %d streams, %d of them ended by connections that did", w.acked.Load(), w.streams, w.broken)
	if w.broken == 0 {
		t.Error("no connection of the writer ended, so nothing was shown")
	}
	s.verify(ctx, w.acked.Load(), identitytest.Source(t, ca, role(identity.Reader)))
	refused, cancelRefused := context.WithTimeout(ctx, time.Second)
	defer cancelRefused()
	if _, err := s.client(old).OpenStream(refused, record.MustSymbol(instrument), 1<<40); err == nil {
		t.Error("the first authority's certificate is still taken")
	}
}

// verify reads everything as a reader and checks that there is each record once.
func (s *secured) verify(ctx context.Context, acked uint64, reader *identity.Source) {
	s.t.Helper()
	next := uint64(1)
	err := s.client(reader).Scan(ctx, record.MustSymbol(instrument), client.Range{}, client.Replica{}, func(rs []record.Record) error {
		for i := range rs {
			if rs[i].Seq != next || rs[i].OrderInsert().OrderID != next {
				return fmt.Errorf("record %d of order %d follows %d", rs[i].Seq, rs[i].OrderInsert().OrderID, next-1)
			}
			next++
		}
		return nil
	})
	if err != nil || next-1 < acked {
		s.t.Errorf("%d records of %d: %v", next-1, acked, err)
	}
}

// writer appends batches without a pause, a few in flight.
type writer struct {
	c       *client.Client
	acked   atomic.Uint64
	streams int
	broken  int // streams that ended although they were not told to
}

const (
	writerBatch  = 10
	writerWindow = 8
)

// progress waits until a batch is acknowledged that was not when it was called.
func (w *writer) progress(t *testing.T, ctx context.Context) {
	t.Helper()
	// What is in flight may have been sent long ago.
	for want := w.acked.Load() + (writerWindow+1)*writerBatch; w.acked.Load() < want; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("nothing is acknowledged beyond %d", w.acked.Load())
		}
	}
}

// run writes until ctx ends, on one stream after the other. It returns an error
// that an exchange could not go on after.
func (w *writer) run(ctx context.Context) error {
	for epoch := uint64(1); ctx.Err() == nil; epoch++ {
		opened, err := w.c.OpenStream(ctx, record.MustSymbol(instrument), epoch)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, refusal.ErrFenced) {
			continue // by its own try whose answer was lost
		}
		if err != nil {
			return err
		}
		if opened.LastSeq < w.acked.Load() {
			return fmt.Errorf("%d records are there of %d", opened.LastSeq, w.acked.Load())
		}
		w.streams++
		if err := w.stream(ctx, epoch, opened.LastSeq+1); err != nil && ctx.Err() == nil {
			if !passes(err) {
				return fmt.Errorf("stream %d: %w", w.streams, err)
			}
			w.broken++
		}
	}
	return nil
}

// passes reports whether an error is one that is tried again.
func passes(err error) bool {
	if r := refusal.FromError(err); r != nil {
		return refusal.Retryable(r.Code)
	}
	return status.Code(err) == codes.Unavailable
}

func (w *writer) stream(ctx context.Context, epoch, next uint64) error {
	a, err := w.c.Append(ctx, "s1")
	if err != nil {
		return err
	}
	defer a.Close()
	window := make(chan struct{}, writerWindow)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for ; ; next += writerBatch {
			select {
			case window <- struct{}{}:
			case <-done:
				return
			}
			b, err := record.AppendBatch(nil, epoch, orders(next, writerBatch))
			if err != nil || a.Send(b) != nil {
				return // Recv says why
			}
		}
	}()
	for {
		ack, err := a.Recv()
		if err != nil {
			return err
		}
		if ack.Refusal != nil {
			return ack.Refusal
		}
		w.acked.Store(ack.LastSeq)
		<-window
	}
}

func TestShardRefusesWhoMayNot(t *testing.T) {
	ca, foreign := identitytest.Authority(t, "test"), identitytest.Authority(t, "test")
	s := startSecured(t, ca)
	ctx, cancel := context.WithTimeout(t.Context(), tlsTimeout)
	defer cancel()
	sym := record.MustSymbol(instrument)
	of := func(r identity.Role) *client.Client { return s.client(identitytest.Source(t, ca, role(r))) }
	exchange, reader, operator := of(identity.Exchange), of(identity.Reader), of(identity.Operator)
	if _, err := exchange.OpenStream(ctx, sym, 1); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"reader writes":        second(reader.OpenStream(ctx, sym, 2)),
		"operator writes":      second(operator.OpenStream(ctx, sym, 2)),
		"exchange administers": second(exchange.AssignInstruments(ctx, "s1", nil)),
		"reader administers":   second(reader.SafeToRestart(ctx, "s1", "s1-0")),
		"trader reads":         second(of(identity.Trader).Instruments(ctx, "s1", client.Replica{})),
	} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"reader reads":         second(reader.Instruments(ctx, "s1", client.Replica{})),
		"exchange reads":       second(exchange.Instruments(ctx, "s1", client.Replica{})),
		"operator administers": second(operator.SafeToRestart(ctx, "s1", "s1-0")),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, tls := range map[string]*identity.Source{
		"no certificate":         nil,
		"a foreign authority":    identitytest.Source(t, foreign, role(identity.Exchange), ca),
		"another cluster's node": identitytest.Source(t, foreign, role(identity.Exchange)),
	} {
		_, err := s.client(tls).Status(ctx, "s1", "s1-0")
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	elsewhere := identitytest.Source(t, ca, identity.Identity{Cluster: "other", Role: identity.Exchange})
	if _, err := client.New(s.m, client.Options{TLS: elsewhere}); err == nil || !strings.Contains(err.Error(), "spiffe://other/exchange") {
		t.Errorf("a client with another cluster's certificate: %v", err)
	}
	if _, err := (&secured{t: t, m: s.m}).client(nil).Leader(shortly(t), "s1"); err == nil {
		t.Error("a leader answers a client without a certificate")
	}
}

func shortly(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func second[T any](_ T, err error) error { return err }

// A node starts with its own certificate only.
func TestForeignCertificatesAreRefused(t *testing.T) {
	ca := identitytest.Authority(t, "test")
	for want, id := range map[string]identity.Identity{
		"not of spiffe://test/node/s1":   role(identity.Exchange),
		"that of spiffe://other/node/s1": {Cluster: "other", Role: identity.Node, Shard: "s1"},
		"that of spiffe://test/node/s2":  {Cluster: "test", Role: identity.Node, Shard: "s2"},
	} {
		d := identitytest.NewDir(t)
		d.Put(identitytest.Pair(t, ca, id), identitytest.Bundle(ca))
		c := config(t)
		c.TLSDir = d.Path
		if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--tls-dir") {
			t.Errorf("%v, want %s", err, want)
		}
	}
	c := config(t)
	c.TLSDir = filepath.Join(t.TempDir(), "none")
	if err := Run(t.Context(), c); err == nil || !strings.Contains(err.Error(), c.TLSDir) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// The metrics port answers probes and shows when certificates expire, without one.
func TestProbesNeedNoCertificate(t *testing.T) {
	ca := identitytest.Authority(t, "test")
	d := identitytest.NewDir(t)
	d.Put(identitytest.Pair(t, ca, ofShard), identitytest.Bundle(ca))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := config(t)
	c.TLSDir, c.MetricsListen = d.Path, l.Addr().String()
	l.Close()
	start(t, c)
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"/healthz": {http.StatusOK, "SERVING"},
		"/readyz":  {http.StatusServiceUnavailable, "NOT_SERVING"}, // it waits to be added to a shard
		"/metrics": {http.StatusOK, "countinghouse_tls_certificate_expiry_timestamp_seconds "},
	} {
		resp, err := http.Get("http://" + c.MetricsListen + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want.code || !strings.Contains(string(body), want.text) {
			t.Errorf("%s: %d %.200s, %v", path, resp.StatusCode, body, err)
		}
	}
}
