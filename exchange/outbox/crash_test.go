package outbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countinghouse/countinghouse/record"
)

// The test binary is its own child process: roleVar says which part it plays.
const (
	roleVar = "OUTBOX_TEST_ROLE"
	dirVar  = "OUTBOX_TEST_DIR"
	seedVar = "OUTBOX_TEST_SEED"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "writer":
		childWriter()
	case "echo":
		childEcho()
	case "script":
		childScript()
	case "lock":
		childLock()
	default:
		os.Exit(m.Run())
	}
}

func childFail(err error) {
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(3)
}

func child(t testing.TB, role, dir string, seed uint64) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), roleVar+"="+role, dirVar+"="+dir, seedVar+"="+strconv.FormatUint(seed, 10))
	cmd.Stderr = os.Stderr
	return cmd
}

// crashOptions make transactions straddle segments often and recycling busy.
func crashOptions() Options {
	return Options{Cluster: "test", SegmentRecords: 64, QuotaBytes: 32 * segmentBytes(64), HeadroomRecords: -1, BootID: testBoot, Cursors: []string{"check"}}
}

// childWriter publishes transactions whose every record says how long they are,
// as fast as it can, until it is killed.
func childWriter() {
	seed, _ := strconv.ParseUint(os.Getenv(seedVar), 10, 64)
	rng := rand.New(rand.NewPCG(seed, 1))
	w, err := Open(os.Getenv(dirVar), crashOptions())
	if err != nil {
		childFail(err)
	}
	fmt.Println("ready", w.Published(), w.Incarnation())
	for {
		n := 1 + rng.IntN(40)
		for !w.Reserve(n) {
			time.Sleep(50 * time.Microsecond)
		}
		writeTx(w, n)
	}
}

func writeTx(w *Writer, n int) {
	for i := range n {
		r := w.Next()
		fill(r)
		r.Time = int64(n)<<32 | int64(i)
	}
	w.Commit()
}

// txChecker follows records and demands whole transactions and no hole.
type txChecker struct {
	global uint64
	left   int // records still to come of the transaction
}

func (c *txChecker) take(r *record.Record) error {
	c.global++
	if r.Global != c.global {
		return fmt.Errorf("global %d where %d is expected", r.Global, c.global)
	}
	n, i := int(r.Time>>32), int(r.Time&0xffffffff)
	if c.left == 0 {
		c.left = n
	}
	if i != n-c.left {
		return fmt.Errorf("global %d is record %d of %d, %d are missing", r.Global, i, n, c.left)
	}
	c.left--
	if last := r.Flags&record.FlagLast != 0; last != (c.left == 0) {
		return fmt.Errorf("global %d: last is %v with %d to come", r.Global, last, c.left)
	}
	copied := *r
	copied.Time = int64(r.Global)
	return checkFilled(&copied, r.Global)
}

// follow checks everything published so far and lets half of it go.
func (c *txChecker) follow(r *Reader) error {
	for rs := r.Peek(); len(rs) > 0; rs = r.Peek() {
		for i := range rs {
			if err := c.take(&rs[i]); err != nil {
				return err
			}
		}
		r.Advance(len(rs))
		if r.Position()%2 == 0 {
			r.SetCursor(r.Position())
		}
	}
	if c.left != 0 {
		return fmt.Errorf("%d is published and a transaction is cut after global %d", r.Published(), c.global)
	}
	return r.Err()
}

// A writer is killed again and again at random instants while a reader in
// another process follows it: whole transactions only, no hole, nothing twice.
func TestKilledWriterLeavesWholeTransactions(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := filepath.Join(t.TempDir(), "outbox")
	var r *Reader
	check := &txChecker{}
	for round := range 20 {
		cmd := child(t, "writer", dir, seed+uint64(round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if want := fmt.Sprintf("ready %d %d\n", check.global, round+1); err != nil || line != want {
			t.Fatalf("round %d: %v: child says %q, want %q", round, err, line, want)
		}
		if r == nil {
			r = openReader(t, dir, "check")
		}
		end := time.Now().Add(time.Duration(rng.IntN(20000)) * time.Microsecond)
		for time.Now().Before(end) {
			if err := check.follow(r); err != nil {
				t.Fatalf("round %d, alive: %v", round, err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if err := check.follow(r); err != nil {
			t.Fatalf("round %d, killed: %v", round, err)
		}
	}
	if check.global == 0 {
		t.Fatal("nothing was published")
	}
	w := open(t, dir, crashOptions())
	if rep := w.Recovery(); rep.BootChanged || rep.CutRecords != 0 || rep.Published != check.global {
		t.Fatalf("%+v, read up to %d", rep, check.global)
	}
	t.Logf("%d records in 20 rounds", check.global)
}

func childLock() {
	if _, err := Open(os.Getenv(dirVar), crashOptions()); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("opened")
}

func TestWriterInAnotherProcessIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "outbox")
	open(t, dir, crashOptions())
	out, err := child(t, "lock", dir, 0).Output()
	if err != nil || !strings.Contains(string(out), ErrLocked.Error()+": process "+strconv.Itoa(os.Getpid())) {
		t.Fatalf("%v: %s", err, out)
	}
}

// childEcho answers each record of one outbox with the same in its own.
func childEcho() {
	dir := os.Getenv(dirVar)
	w, err := Open(filepath.Join(dir, "back"), crashOptions())
	if err != nil {
		childFail(err)
	}
	r, err := OpenReader(filepath.Join(dir, "forth"), "check")
	if err != nil {
		childFail(err)
	}
	fmt.Println("ready")
	for {
		rs := r.Peek()
		for i := range rs {
			for !w.Reserve(1) {
				time.Sleep(10 * time.Microsecond)
			}
			g := w.Next()
			global := g.Global
			*g = rs[i]
			g.Global = global
			w.Commit()
		}
		r.Advance(len(rs))
		r.SetCursor(r.Position())
		if errors.Is(r.Err(), ErrDamaged) || os.Getppid() == 1 {
			return
		}
	}
}

// echo starts the child and returns the writer to it and the reader from it.
func echo(t testing.TB) (*Writer, *Reader) {
	t.Helper()
	dir := t.TempDir()
	w, err := Open(filepath.Join(dir, "forth"), crashOptions())
	if err != nil {
		t.Fatal(err)
	}
	cmd := child(t, "echo", dir, 0)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
		w.Close()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("child: %q %v", line, err)
	}
	r, err := OpenReader(filepath.Join(dir, "back"), "check")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return w, r
}

func TestRecordsReachAnotherProcessAndComeBack(t *testing.T) {
	w, r := echo(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for w.Published() < 3000 {
		publish(t, w, 7)
		for r.Position() < w.Published() {
			if err := r.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			readAll(t, r)
			r.SetCursor(r.Position())
		}
	}
}
