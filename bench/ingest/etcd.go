package ingest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// etcdKV has one Raft group, whatever the number of shards.
var etcdKV = system{
	name:    "etcd",
	durable: "two of three members have it in their log, fdatasync returned; applied at the leader, in bbolt, which is synced every 100 ms or 10,000 puts",
	note: "a put of a key of its own a batch, by a call at the leader without gRPC; " +
		"election timeouts of 0.5 s (the member that leads) and 5 s, quota 8 GiB, else defaults; HTTP on loopback; all shards share the one Raft group",
	open: openEtcd,
}

const (
	etcdQuotaBytes = 8 << 30
	etcdToken      = "bench"
)

type etcdCluster struct {
	members []*embed.Etcd
	leader  *clientv3.Client
	shards  []etcdShard
}

// etcdShard is used by the shard's goroutine, and when it has ended.
type etcdShard struct {
	puts    int
	records int // of a batch
}

func openEtcd(ctx context.Context, dir string, shards int) (cluster, error) {
	c := &etcdCluster{shards: make([]etcdShard, shards)}
	if err := c.open(ctx, dir); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *etcdCluster) open(ctx context.Context, dir string) error {
	addresses, err := freeAddresses(2 * replicas)
	if err != nil {
		return err
	}
	peers, clients := addresses[:replicas], addresses[replicas:]
	for i := range replicas {
		m, err := embed.StartEtcd(etcdConfig(i, dir, peers, clients[i]))
		if err != nil {
			return err
		}
		c.members = append(c.members, m)
	}
	err = await(ctx, "a leader", func() bool {
		for _, m := range c.members {
			if m.Server.Leader() == m.Server.MemberID() {
				c.leader = v3client.New(m.Server)
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	for _, m := range c.members {
		select {
		case <-m.Server.ReadyNotify():
		case <-time.After(openTimeout):
			return fmt.Errorf("member %s: not ready within %s", m.Config().Name, openTimeout)
		}
	}
	return nil
}

// etcdConfig makes the first member ask for votes before the others.
func etcdConfig(i int, dir string, peers []string, client string) *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir = etcdName(i), filepath.Join(dir, etcdName(i))
	c.InitialClusterToken = etcdToken
	var initial []string
	for j, p := range peers {
		initial = append(initial, etcdName(j)+"="+"http://"+p)
	}
	c.InitialCluster = strings.Join(initial, ",")
	c.ListenPeerUrls, c.AdvertisePeerUrls = etcdURL(peers[i]), etcdURL(peers[i])
	c.ListenClientUrls, c.AdvertiseClientUrls = etcdURL(client), etcdURL(client)
	c.ElectionMs = uint(followerTimeout / time.Millisecond)
	if i == 0 {
		c.ElectionMs = uint(leaderTimeout / time.Millisecond)
	}
	c.QuotaBackendBytes = etcdQuotaBytes
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	return c
}

func etcdName(i int) string { return fmt.Sprintf("m%d", i) }

func etcdURL(address string) []url.URL { return []url.URL{{Scheme: "http", Host: address}} }

// Submit puts on a goroutine of its own: a put waits for its answer.
func (c *etcdCluster) Submit(shard int, batch []byte, done func(error)) {
	s := &c.shards[shard]
	s.puts++
	s.records = len(batch) / recordBytes
	key, value := fmt.Sprintf("%s%09d", etcdPrefix(shard), s.puts), string(batch)
	go func() {
		_, err := c.leader.Put(context.Background(), key, value)
		done(err)
	}()
}

func etcdPrefix(shard int) string { return fmt.Sprintf("s%d/", shard) }

func (c *etcdCluster) Stored(shard int) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	r, err := c.leader.Get(ctx, etcdPrefix(shard), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return int(r.Count) * c.shards[shard].records, nil
}

func (c *etcdCluster) Close() error {
	if c.leader != nil {
		_ = c.leader.Close() // says only that its context has ended
	}
	for _, m := range c.members {
		m.Close()
	}
	return nil
}
