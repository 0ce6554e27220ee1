package netfault

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"
)

const (
	patience = 10 * time.Second
	// silence is how long a test waits to see that nothing comes.
	silence = 60 * time.Millisecond
)

// echo is a host that sends back what it gets, until it gets the end.
func echo(t *testing.T) string {
	t.Helper()
	return serve(t, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
	})
}

func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

// between returns a network with hosts a and b, b behind a proxy, and a function
// by which a host connects to b.
func between(t *testing.T, seed uint64, target string) (*Network, func(host string) net.Conn) {
	t.Helper()
	n := New(seed)
	t.Cleanup(n.Close)
	address, err := n.Serve("b", target)
	if err != nil {
		t.Fatal(err)
	}
	return n, func(host string) net.Conn {
		t.Helper()
		dial, err := n.Dialer(host)
		if err != nil {
			t.Fatal(err)
		}
		c, err := dial(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// ask sends a message and reports whether it comes back within d.
func ask(t *testing.T, c net.Conn, message string, d time.Duration) bool {
	t.Helper()
	if _, err := c.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	return answered(t, c, message, d)
}

func answered(t *testing.T, c net.Conn, message string, d time.Duration) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	n, err := io.ReadFull(c, got)
	if n == 0 && isTimeout(err) {
		return false
	}
	if err != nil || string(got) != message {
		t.Fatalf("got %q, %v; want %q", got[:n], err, message)
	}
	return true
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestBytesArriveIntact(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	for name, f := range map[string]Fault{
		"nothing":   {},
		"delay":     {Delay: 2 * time.Millisecond, Jitter: 3 * time.Millisecond},
		"bandwidth": {BytesPerSecond: 20 << 20},
		"both":      {Delay: time.Millisecond, Jitter: time.Millisecond, BytesPerSecond: 30 << 20},
	} {
		n, connect := between(t, seed, echo(t))
		n.Impose(f, Both("a", "b")...)
		c := connect("a")
		sent := make([]byte, 1<<20)
		for i := range sent {
			sent[i] = byte(random.Uint32())
		}
		go func() {
			for rest := sent; len(rest) > 0; {
				k := min(len(rest), 1+random.IntN(40_000))
				if _, err := c.Write(rest[:k]); err != nil {
					return
				}
				rest = rest[k:]
			}
			_ = c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%s (seed %d): %d bytes %x, %v; sent %d bytes %x", name, seed, len(got), sha256.Sum256(got), err, len(sent), sha256.Sum256(sent))
		}
	}
}

func TestDelayAndBandwidthTakeTheirTime(t *testing.T) {
	n, connect := between(t, 1, echo(t))
	c := connect("a")
	if !ask(t, c, "hello", patience) {
		t.Fatal("no answer without faults")
	}
	lift := n.Impose(Fault{Delay: 30 * time.Millisecond}, Both("a", "b")...)
	began := time.Now()
	if !ask(t, c, "hello", patience) || time.Since(began) < 60*time.Millisecond {
		t.Errorf("there and back took %s with 30 ms each way", time.Since(began))
	}
	lift()
	lift = n.Impose(Fault{BytesPerSecond: 100 << 10}, Link{"a", "b"})
	began = time.Now()
	if !ask(t, c, string(make([]byte, 10<<10)), patience) || time.Since(began) < 90*time.Millisecond {
		t.Errorf("10 KiB took %s at 100 KiB/s", time.Since(began))
	}
	lift()
	lift()
	if effect, _ := n.link(Link{"a", "b"}).state(); effect != (Fault{}) {
		t.Errorf("%+v is left after the faults were lifted", effect)
	}
}

func TestFaultsOfALinkAddUp(t *testing.T) {
	n := New(1)
	l := Link{"a", "b"}
	lifts := []func(){
		n.Impose(Fault{Delay: time.Second, BytesPerSecond: 10}, l),
		n.Impose(Fault{Delay: time.Minute, Jitter: time.Hour}, l),
		n.Impose(Fault{BytesPerSecond: 5, Blackhole: true}, l),
	}
	effect, _ := n.link(l).state()
	if want := (Fault{time.Second + time.Minute, time.Hour, 5, true}); effect != want {
		t.Errorf("together %+v, want %+v", effect, want)
	}
	lifts[2]()
	effect, _ = n.link(l).state()
	if want := (Fault{time.Second + time.Minute, time.Hour, 10, false}); effect != want {
		t.Errorf("without the last %+v, want %+v", effect, want)
	}
}

// A blackhole in one direction: b hears a, a hears nothing, and c is not
// concerned. What was held back arrives when it is over.
func TestOneWayBlackhole(t *testing.T) {
	heard := make(chan string, 16)
	target := serve(t, func(c net.Conn) {
		for buf := make([]byte, 64); ; {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			heard <- string(buf[:k])
			if _, err := c.Write(buf[:k]); err != nil {
				return
			}
		}
	})
	n, connect := between(t, 1, target)
	a, c := connect("a"), connect("c")
	for _, conn := range []net.Conn{a, c} {
		if !ask(t, conn, "hello", patience) {
			t.Fatal("no answer without faults")
		}
		<-heard
	}
	lift := n.Impose(Fault{Blackhole: true}, Link{"b", "a"})
	if ask(t, a, "one way", silence) {
		t.Error("an answer came through the blackhole")
	}
	if got := <-heard; got != "one way" {
		t.Errorf("b heard %q", got)
	}
	if !ask(t, c, "bystander", patience) {
		t.Error("the link of another host is down")
	}
	<-heard
	lift()
	if !answered(t, a, "one way", patience) {
		t.Error("nothing arrives after the blackhole")
	}
	lift = n.Impose(Fault{Blackhole: true}, Link{"a", "b"})
	if ask(t, a, "other way", silence) {
		t.Error("an answer came though nothing could be heard")
	}
	late := connect("a") // is taken by the proxy, and held there
	if ask(t, late, "knock", silence) || len(heard) != 0 {
		t.Errorf("b has heard %d messages through the blackhole", len(heard))
	}
	lift()
	if !answered(t, a, "other way", patience) || !answered(t, late, "knock", patience) {
		t.Error("nothing arrives after the blackhole")
	}
}

func TestCutBreaksOnlyItsPair(t *testing.T) {
	n, connect := between(t, 1, echo(t))
	a, c := connect("a"), connect("c")
	if !ask(t, a, "hello", patience) || !ask(t, c, "hello", patience) {
		t.Fatal("no answer without faults")
	}
	if got := n.Cut("b", "a"); got != 1 {
		t.Errorf("%d connections were cut, not 1", got)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a cut connection gives %v, not a reset", err)
	}
	if !ask(t, c, "bystander", patience) || !ask(t, connect("a"), "again", patience) {
		t.Error("the cut concerns others")
	}
	if got := n.Connections(); got != 2 {
		t.Errorf("%d connections are carried, not 2", got)
	}
}

func TestEndsAndResetsCross(t *testing.T) {
	n, connect := between(t, 1, echo(t))
	a := connect("a")
	if !ask(t, a, "hello", patience) {
		t.Fatal("no answer without faults")
	}
	if err := a.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(a); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	eventually(t, "the connection is forgotten", func() bool { return n.Connections() == 0 })
	breaks := serve(t, func(c net.Conn) { reset(c) })
	n, _ = between(t, 1, breaks)
	if err := firstError(t, n); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a reset became %v", err)
	}
	eventually(t, "the connection is forgotten", func() bool { return n.Connections() == 0 })
}

// firstError connects from a to b and returns what breaks first, the dialling or
// the reading.
func firstError(t *testing.T, n *Network) error {
	t.Helper()
	dial, err := n.Dialer("a")
	if err != nil {
		t.Fatal(err)
	}
	c, err := dial(t.Context(), n.proxies["b"].listener.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err = c.Read(make([]byte, 1))
	return err
}

func TestTargetThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	n, _ := between(t, 1, l.Addr().String())
	if err := firstError(t, n); err == nil {
		t.Error("a connection to a host that is down must break")
	}
	eventually(t, "the connection is forgotten", func() bool { return n.Connections() == 0 })
}

func TestLeaveAndClose(t *testing.T) {
	n, connect := between(t, 1, echo(t))
	a := connect("a")
	if !ask(t, a, "hello", patience) {
		t.Fatal("no answer without faults")
	}
	if _, err := n.Serve("b", "127.0.0.1:1"); err == nil {
		t.Error("a second proxy for one host")
	}
	n.Leave("b")
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlives its host")
	}
	n.Leave("nobody")
	n.Close()
	if _, err := n.Serve("d", "127.0.0.1:1"); !errors.Is(err, ErrClosed) {
		t.Errorf("a proxy after Close: %v", err)
	}
}

func TestAddressesTellHostsApart(t *testing.T) {
	n := New(1)
	a, err := n.Address("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.Address("b")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := n.Address("a"); again != a || a == b || !a.IsLoopback() || !b.IsLoopback() {
		t.Errorf("a is %s and %s, b is %s", a, again, b)
	}
}

// Jitter comes from the seed, the link and the connection's number, and from
// nothing else.
func TestSeedDecides(t *testing.T) {
	draw := func(seed uint64, l Link, stream uint64) []float64 {
		r := New(seed).random(l, stream)
		return []float64{r.Float64(), r.Float64(), r.Float64()}
	}
	base := draw(7, Link{"a", "b"}, 2)
	if !slices.Equal(base, draw(7, Link{"a", "b"}, 2)) {
		t.Error("the same seed draws differently")
	}
	for name, other := range map[string][]float64{
		"seed": draw(8, Link{"a", "b"}, 2), "link": draw(7, Link{"b", "a"}, 2), "connection": draw(7, Link{"a", "b"}, 4),
	} {
		if slices.Equal(base, other) {
			t.Errorf("another %s draws the same", name)
		}
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
