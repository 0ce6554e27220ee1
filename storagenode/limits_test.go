package storagenode_test

import (
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/refusal"
	"github.com/countinghouse/countinghouse/storagenode/storagepb"
)

// limited returns the only member of a shard, whose server has the options.
func limited(t *testing.T, o storagenode.Options) *member {
	t.Helper()
	return newClusterOf(t, 1, o, nil).leader()
}

// narrow connects with a window that does not grow: what a client does not read
// soon stays with the server.
func narrow(t *testing.T, m *member) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+m.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// value returns one of the member's metrics, summed over its labels.
func value(t *testing.T, m *member, name string) (sum float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.running.Load().server)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, x := range f.Metric {
				sum += x.GetGauge().GetValue() + x.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// A client that takes nothing of what it asked for gives its place, and the store
// that it reads, back.
func TestAReaderThatTakesNothingLosesItsStream(t *testing.T) {
	m := limited(t, storagenode.Options{ReaderTimeout: 200 * time.Millisecond, QueriesMax: 1, ChunkBytes: 64 << 10})
	write(t, m, "A", 1, 20000, 1000)
	stream, err := storagepb.NewQueryClient(narrow(t, m)).Scan(testContext(t), &storagepb.ScanRequest{Instrument: "A"})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is under way", func() bool { return value(t, m, "storagenode_server_queries") == 1 })
	eventually(t, "its place is free", func() bool {
		got, err := scan(t, m, &storagepb.ScanRequest{Instrument: "A", ToSeq: 1})
		return err == nil && len(got) == 128
	})
	eventually(t, "the end of its stream is counted", func() bool { return value(t, m, "storagenode_server_readers_ended_total") == 1 })
	for err == nil { // what was on its way comes yet
		_, err = stream.Recv()
	}
	wantRefusal(t, err, refusal.ErrOverloaded)
	// One that reads slowly keeps its stream.
	slow, err := m.query().Scan(testContext(t), &storagepb.ScanRequest{Instrument: "A"})
	if err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for bytes < 20000*128 {
		r, err := slow.Recv()
		if err != nil {
			t.Fatalf("after %d bytes: %v", bytes, err)
		}
		if bytes += len(r.Data); bytes%(512<<10) == 0 {
			time.Sleep(50 * time.Millisecond) // a reader that works on what it got
		}
	}
}

// A writer that does not read its answers is ended, too, and what it sent is
// stored once.
func TestAWriterThatTakesNoAnswersLosesItsStream(t *testing.T) {
	m := limited(t, storagenode.Options{ReaderTimeout: 200 * time.Millisecond})
	epoch := open(t, m, "A", 1).Epoch
	stream, err := storagepb.NewIngestClient(narrow(t, m)).Append(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan uint64)
	go func() {
		seq := uint64(1)
		for ; stream.Send(&storagepb.AppendRequest{Batch: batch(t, "A", epoch, seq, 1)}) == nil; seq++ {
		}
		sent <- seq
	}()
	eventually(t, "its stream is ended", func() bool { return value(t, m, "storagenode_server_readers_ended_total") == 1 })
	for err == nil { // what was on its way comes yet
		_, err = stream.Recv()
	}
	seq := <-sent
	wantRefusal(t, err, refusal.ErrOverloaded)
	if last := open(t, m, "A", epoch+1).LastSeq; last == 0 || last >= seq {
		t.Errorf("last seq %d, %d batches were sent", last, seq)
	}
}

func TestAppendStreamsAndConnectionsAreLimited(t *testing.T) {
	m := limited(t, storagenode.Options{AppendStreamsMax: 1, ConnectionsMax: 3})
	first, err := m.ingest().Append(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is open", func() bool { return value(t, m, "storagenode_server_append_streams") == 1 })
	second, err := m.ingest().Append(testContext(t))
	if err == nil {
		_, err = second.Recv()
	}
	wantRefusal(t, err, refusal.ErrOverloaded)
	if err := first.CloseSend(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is a place again", func() bool { return value(t, m, "storagenode_server_append_streams") == 0 })

	var conns []net.Conn
	for range 6 {
		conn, err := net.Dial("tcp", m.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	eventually(t, "connections are refused", func() bool { return value(t, m, "storagenode_server_connections_refused_total") > 0 })
	if n := value(t, m, "storagenode_server_connections"); n > 3 {
		t.Errorf("%v connections are open", n)
	}
	for _, conn := range conns {
		conn.Close()
	}
	eventually(t, "there is a place again", func() bool { return value(t, m, "storagenode_server_connections") <= 1 })
	write(t, m, "B", 1, 10, 1)
}

// Where all places are taken, a writer gets that of a stream that nobody uses.
func TestAnIdleStreamGivesItsPlaceAway(t *testing.T) {
	m := limited(t, storagenode.Options{AppendStreamsMax: 2, ReaderTimeout: 50 * time.Millisecond})
	var idle []storagepb.Ingest_AppendClient
	for i := range 2 {
		s, err := m.ingest().Append(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, s)
		// One after the other, for the first to be the one that is longest idle.
		eventually(t, "it is open", func() bool { return value(t, m, "storagenode_server_append_streams") == float64(i+1) })
	}
	eventually(t, "a writer has a place", func() bool {
		stream, err := m.ingest().Append(testContext(t))
		if err != nil {
			return false
		}
		defer func() { _ = stream.CloseSend() }()
		if err := stream.Send(&storagepb.AppendRequest{Batch: []byte("nonsense")}); err != nil {
			return false
		}
		a, err := stream.Recv()
		return err == nil && a.Refusal != nil
	})
	ended := 0
	for _, s := range idle[:1] {
		if _, err := s.Recv(); err != nil {
			wantRefusal(t, err, refusal.ErrOverloaded)
			ended++
		}
	}
	if ended == 0 {
		t.Error("nobody gave its place away")
	}
}

// A client that asks again and again and never reads loses its connection, and the
// memory that it took is free again.
func TestReadersThatNeverReadTakeBoundedMemory(t *testing.T) {
	m := limited(t, storagenode.Options{ReaderTimeout: 50 * time.Millisecond, QueriesMax: 16})
	write(t, m, "A", 1, 20000, 1000)
	conn := narrow(t, m)
	dials := map[string]bool{}
	for ended := 0.0; ended < 12; ended = value(t, m, "storagenode_server_readers_ended_total") {
		stream, err := storagepb.NewQueryClient(conn).Scan(testContext(t), &storagepb.ScanRequest{Instrument: "A"}, grpc.WaitForReady(true))
		if err == nil {
			_, err = stream.Header()
		}
		if err != nil {
			continue // its connection was closed, or too many are under way
		}
		if pr, ok := peer.FromContext(stream.Context()); ok {
			dials[pr.LocalAddr.String()] = true
		}
		before := ended
		eventually(t, "its stream is ended, or its connection", func() bool {
			return value(t, m, "storagenode_server_readers_ended_total") > before || stream.Context().Err() != nil
		})
	}
	if len(dials) < 3 {
		t.Errorf("12 streams that were not read, on the connections %v", dials)
	}
}
