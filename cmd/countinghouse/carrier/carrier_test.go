package carrier

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/cmd/countinghouse/output"
	"github.com/countinghouse/countinghouse/storagenode/client"
)

const oneShard = "cluster: test\nshards:\n- name: s1\n  instruments: [IF2501]\n  members:\n  - {id: a, address: \"127.0.0.1:1\"}\n"

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// buffer is written by a command that runs.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) await(t *testing.T, words string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		text := b.b.String()
		b.mu.Unlock()
		if strings.Contains(text, words) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no %q in %s", words, text)
		}
	}
}

func execute(ctx context.Context, log io.Writer, args ...string) error {
	cmd := Command()
	cmd.SetArgs(args)
	cmd.SetOut(io.Discard)
	cmd.SetErr(log)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	return cmd.ExecuteContext(ctx)
}

// Whatever is wrong with the words is named, with the flag.
func TestBadWords(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	write(t, good, oneShard)
	write(t, bad, "shards: [")
	for words, args := range map[string][]string{
		"--shards":         {"--shards", bad},
		"--cluster":        {"--cluster", "other"},
		"--preset":         {"--preset", "fast"},
		"--batch-size":     {"--batch-size", "0"},
		"BatchRecords":     {"--batch-size", "100000"},
		"--linger":         {"--linger", "0s"},
		"--log-level":      {"--log-level", "loud"},
		"--metrics-listen": {"--metrics-listen", "here"},
		"--tls-dir":        {"--tls-dir", dir},
	} {
		err := execute(t.Context(), io.Discard, append([]string{"--outbox", dir, "--shards", good}, args...)...)
		if err == nil || output.ExitCode(err) != output.ExitUsage || !strings.Contains(err.Error(), words) {
			t.Errorf("%v: exit code %d, %v", args, output.ExitCode(err), err)
		}
	}
	if err := execute(t.Context(), io.Discard, "--shards", good); err == nil || !strings.Contains(err.Error(), "outbox") {
		t.Errorf("without an outbox: %v", err)
	}
}

// It waits for the shard map, and then for the outbox, and ends well when it is told
// to.
func TestWaitsForWhatIsNotThereYet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	shards := filepath.Join(dir, "shards.yaml")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log, done := &buffer{}, make(chan error, 1)
	go func() {
		done <- execute(ctx, log, "--outbox", filepath.Join(dir, "outbox"), "--shards", shards, "--metrics-listen", address)
	}()
	log.await(t, "there is no shard map yet")
	r, err := http.Get("http://" + address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if r.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), shards) {
		t.Errorf("not ready: %s, %s", r.Status, text)
	}
	write(t, shards, oneShard)
	log.await(t, "has not made the outbox yet")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Members follow the shard map; what can not be followed changes nothing.
func TestMembersFollowTheMap(t *testing.T) {
	m, err := client.ParseMap([]byte(oneShard))
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(m, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	log := &buffer{}
	path := filepath.Join(t.TempDir(), "shards.yaml")
	f := carrier{shards: path}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { f.follow(ctx, c, slog.New(slog.NewTextHandler(log, nil))) })
	for text, words := range map[string]string{
		strings.Replace(oneShard, "test", "other", 1): "of cluster",
		strings.Replace(oneShard, "s1", "s2", 1):      "no shard s1",
		"shards: [":                                   "yaml",
	} {
		write(t, path, text)
		log.await(t, words)
	}
	if got := c.Members("s1"); len(got) != 1 || got[0].Address != "127.0.0.1:1" {
		t.Errorf("the members are %v", got)
	}
	write(t, path, strings.Replace(oneShard, "127.0.0.1:1", "127.0.0.1:2", 1))
	log.await(t, "members of a shard changed")
	if got := c.Members("s1"); len(got) != 1 || got[0].Address != "127.0.0.1:2" {
		t.Errorf("the members are %v", got)
	}
}
