package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// jetStream is the only one whose members are not given other timeouts: there is
// no setting for them.
var jetStream = system{
	name: "NATS JetStream R3",
	durable: "the leader and a follower have it in their Raft log, fsync returned (sync_interval: always); " +
		"the stream's own file is written, and synced with each snapshot of the stream",
	note: "asynchronous publish over TCP on loopback to the stream's leader, a message a batch; stream with 3 replicas in files; a shard is a stream; defaults otherwise",
	open: openJetStream,
}

const natsReady = 10 * time.Second

type natsCluster struct {
	servers []*server.Server
	streams []*natsStream
}

// natsStream is a stream and a connection to its leader.
type natsStream struct {
	name    string
	conn    *nats.Conn
	js      jetstream.JetStream
	records int // of a batch; used by the shard's goroutine, and when it has ended
}

func openJetStream(ctx context.Context, dir string, shards int) (cluster, error) {
	c := &natsCluster{}
	if err := c.open(ctx, dir, shards); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *natsCluster) open(ctx context.Context, dir string, shards int) error {
	if err := c.startServers(dir); err != nil {
		return err
	}
	err := await(ctx, "a leader of the cluster", func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() {
				return len(s.JetStreamClusterPeers()) == replicas
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for shard := range shards {
		if err := c.openStream(ctx, fmt.Sprintf("s%d", shard)); err != nil {
			return err
		}
	}
	return nil
}

func (c *natsCluster) startServers(dir string) error {
	addresses, err := freeAddresses(replicas)
	if err != nil {
		return err
	}
	var routes []*url.URL
	for _, a := range addresses {
		routes = append(routes, &url.URL{Scheme: "nats", Host: a})
	}
	for i := range addresses {
		o, err := natsOptions(i, routes, filepath.Join(dir, fmt.Sprintf("m%d", i)))
		if err != nil {
			return err
		}
		s, err := server.NewServer(o)
		if err != nil {
			return err
		}
		c.servers = append(c.servers, s)
		s.Start()
	}
	for _, s := range c.servers {
		if !s.ReadyForConnections(natsReady) {
			return fmt.Errorf("server %s: not ready within %s", s.Name(), natsReady)
		}
	}
	return nil
}

func natsOptions(i int, routes []*url.URL, dir string) (*server.Options, error) {
	host, port, err := splitPort(routes[i].Host)
	if err != nil {
		return nil, err
	}
	return &server.Options{
		ServerName: fmt.Sprintf("m%d", i), Host: "127.0.0.1", Port: server.RANDOM_PORT,
		Cluster:   server.ClusterOpts{Name: "bench", Host: host, Port: port},
		Routes:    routes,
		JetStream: true, StoreDir: dir, SyncAlways: true,
		NoLog: true, NoSigs: true,
	}, nil
}

// openStream creates a stream and connects to the server that leads it.
func (c *natsCluster) openStream(ctx context.Context, name string) error {
	leader, err := c.createStream(ctx, name)
	if err != nil {
		return err
	}
	s := &natsStream{name: name}
	if s.conn, err = nats.Connect(leader.ClientURL()); err != nil {
		return err
	}
	c.streams = append(c.streams, s)
	s.js, err = jetstream.New(s.conn)
	return err
}

func (c *natsCluster) createStream(ctx context.Context, name string) (*server.Server, error) {
	conn, err := nats.Connect(c.servers[0].ClientURL())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{name}, Replicas: replicas, Storage: jetstream.FileStorage,
	})
	if err != nil {
		return nil, err
	}
	var leader *server.Server
	err = await(ctx, "a leader of stream "+name, func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, name) {
				leader = s
			}
		}
		return leader != nil
	})
	return leader, err
}

// Submit hands a message to the client, which writes it to the connection later.
func (c *natsCluster) Submit(shard int, batch []byte, done func(error)) {
	s := c.streams[shard]
	s.records = len(batch) / recordBytes
	future, err := s.js.PublishAsync(s.name, bytes.Clone(batch))
	if err != nil {
		done(err)
		return
	}
	go func() {
		select {
		case <-future.Ok():
			done(nil)
		case err := <-future.Err():
			done(err)
		}
	}()
}

func (c *natsCluster) Stored(shard int) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	s := c.streams[shard]
	stream, err := s.js.Stream(ctx, s.name)
	if err != nil {
		return 0, err
	}
	return int(stream.CachedInfo().State.Msgs) * s.records, nil
}

func (c *natsCluster) Close() error {
	for _, s := range c.streams {
		s.conn.Close()
	}
	for _, s := range c.servers {
		s.Shutdown()
	}
	for _, s := range c.servers {
		s.WaitForShutdown()
	}
	return nil
}
