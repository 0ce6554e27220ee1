package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/countinghouse/countinghouse/record"
	"github.com/countinghouse/countinghouse/storagenode"
	"github.com/countinghouse/countinghouse/storagenode/client"
	"github.com/countinghouse/countinghouse/storagenode/replica"
)

const (
	housesDurable = "the leader and a follower have it in their log, fdatasync returned; applied at the leader"
	housesNote    = "defaults but for heartbeat timeouts of 0.5 s (the member that leads) and 5 s; members talk over gRPC on loopback; " +
		"a shard is a Raft group with a log of its own; numbering and checksumming a batch counts"
)

// overGRPC is Countinghouse as an exchange uses it.
var overGRPC = system{
	name: "countinghouse", ours: true, durable: housesDurable,
	note: "one stream a shard of the public client, over gRPC on loopback; " + housesNote,
	open: func(ctx context.Context, dir string, shards int) (cluster, error) {
		return openHouses(ctx, dir, shards, appendOverGRPC)
	},
}

// inProcess leaves out the client's way to the leader, as for the peers that are
// driven in process.
var inProcess = system{
	name: "countinghouse, in process", ours: true, durable: housesDurable,
	note: "proposed at the leader by a call; " + housesNote,
	open: func(ctx context.Context, dir string, shards int) (cluster, error) {
		return openHouses(ctx, dir, shards, proposeInProcess)
	},
}

const (
	houseCluster = "bench"
	houseEpoch   = 1
	// The transport gives a heartbeat up after this: the default, twice the default
	// heartbeat timeout.
	houseHeartbeat = 2 * time.Second
)

// houses are the nodes of all shards and a writer of each.
type houses struct {
	shards  []*houseShard
	client  *client.Client
	writers []houseWriter
}

// houseWriter takes the batches of one shard's instrument, in order.
type houseWriter interface {
	submit(batch []byte, lastSeq uint64, done func(error))
	close()
}

type houseShard struct {
	name    string
	symbol  record.Symbol
	members []*houseMember
	next    uint64 // seq of the next record; used by the shard's goroutine only
	records []record.Record
}

type houseMember struct {
	id       string
	address  string
	listener net.Listener
	replica  *replica.Replica
	server   *storagenode.Server
	served   chan error
}

func openHouses(ctx context.Context, dir string, shards int, write func(context.Context, *houses, *houseShard) (houseWriter, error)) (cluster, error) {
	h := &houses{}
	if err := h.open(ctx, dir, shards, write); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *houses) open(ctx context.Context, dir string, shards int, write func(context.Context, *houses, *houseShard) (houseWriter, error)) error {
	m := &client.Map{Cluster: houseCluster}
	for i := range shards {
		name := fmt.Sprintf("s%d", i)
		s := &houseShard{name: name, symbol: record.MustSymbol("I" + name), next: 1}
		h.shards = append(h.shards, s)
		if err := s.start(filepath.Join(dir, name)); err != nil {
			return err
		}
		m.Shards = append(m.Shards, s.description())
	}
	var err error
	if h.client, err = client.New(m, client.Options{}); err != nil {
		return err
	}
	for _, s := range h.shards {
		if err := h.openStream(ctx, s, write); err != nil {
			return err
		}
	}
	return nil
}

// openStream waits for the leader of the shard and opens its instrument's stream.
func (h *houses) openStream(ctx context.Context, s *houseShard, write func(context.Context, *houses, *houseShard) (houseWriter, error)) error {
	err := await(ctx, "a leader of shard "+s.name, func() bool { return s.leader() != nil })
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := s.awaitOwned(opening, h.client); err != nil {
		return err
	}
	if _, err := h.client.OpenStream(opening, s.symbol, houseEpoch); err != nil {
		return err
	}
	w, err := write(ctx, h, s)
	if err != nil {
		return err
	}
	h.writers = append(h.writers, w)
	return nil
}

// start starts the members, of which the first asks for votes before the others.
func (s *houseShard) start(dir string) error {
	var peers []replica.Peer
	for i := range replicas {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		m := &houseMember{id: fmt.Sprintf("%s-m%d", s.name, i), address: l.Addr().String(), listener: l}
		s.members = append(s.members, m)
		peers = append(peers, replica.Peer{ID: m.id, Address: m.address})
	}
	for i, m := range s.members {
		timeout := followerTimeout
		if i == 0 {
			timeout = leaderTimeout
		}
		err := m.start(&replica.Config{
			Cluster: houseCluster, Shard: s.name, ID: m.id, Address: m.address, DataDir: filepath.Join(dir, m.id),
			Peers: peers, Instruments: []record.Symbol{s.symbol},
			HeartbeatTimeout: timeout, LeaderLease: leaderTimeout,
			Transport: replica.TransportOptions{HeartbeatTimeout: houseHeartbeat},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *houseMember) start(c *replica.Config) error {
	var err error
	if m.replica, err = replica.Open(*c); err != nil {
		return err
	}
	m.server, m.served = storagenode.New(m.replica, storagenode.Options{}), make(chan error, 1)
	go func() { m.served <- m.server.Serve(m.listener) }()
	return nil
}

func (m *houseMember) close() error {
	if m.replica == nil {
		return m.listener.Close()
	}
	m.server.Stop()
	return errors.Join(<-m.served, m.replica.Close())
}

func (s *houseShard) description() client.Shard {
	out := client.Shard{Name: s.name, Instruments: []string{s.symbol.String()}}
	for _, m := range s.members {
		out.Members = append(out.Members, client.Member{ID: m.id, Address: m.address})
	}
	return out
}

func (s *houseShard) leader() *replica.Replica {
	for _, m := range s.members {
		if m.replica.IsLeader() {
			return m.replica
		}
	}
	return nil
}

// awaitOwned waits until the leader has given the shard its instrument.
func (s *houseShard) awaitOwned(ctx context.Context, c *client.Client) error {
	return await(ctx, "the instrument of shard "+s.name, func() bool {
		list, err := c.Instruments(ctx, s.name, client.Replica{})
		return err == nil && len(list.Instruments) > 0
	})
}

func (h *houses) Submit(shard int, batch []byte, done func(error)) {
	s := h.shards[shard]
	b, err := s.build(batch)
	if err != nil {
		done(err)
		return
	}
	h.writers[shard].submit(b, s.next-1, done)
}

// build returns a batch of the stream's next records.
func (s *houseShard) build(batch []byte) ([]byte, error) {
	if len(s.records)*recordBytes != len(batch) {
		rs, err := record.View(batch)
		if err != nil {
			return nil, err
		}
		s.records = append(s.records[:0], rs...)
		for i := range s.records {
			s.records[i].Instrument = s.symbol
		}
	}
	for i := range s.records {
		s.records[i].Seq, s.records[i].Global = s.next+uint64(i), s.next+uint64(i)
	}
	s.next += uint64(len(s.records))
	return record.AppendBatch(make([]byte, 0, record.BatchHeaderSize+len(batch)), houseEpoch, s.records)
}

func (h *houses) Stored(shard int) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	n := 0
	err := h.client.Scan(ctx, h.shards[shard].symbol, client.Range{}, client.Replica{}, func(rs []record.Record) error {
		n += len(rs)
		return nil
	})
	return n, err
}

func (h *houses) Close() error {
	var closes []func() error
	for _, w := range h.writers {
		w.close()
	}
	if h.client != nil {
		closes = append(closes, h.client.Close)
	}
	for _, s := range h.shards {
		for _, m := range s.members {
			closes = append(closes, m.close)
		}
	}
	return joinErrors(closes)
}
