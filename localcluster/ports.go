package localcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Ports come from below the range that Linux hands to outgoing connections, so
// that the port of a node that is down is not taken by somebody's client before
// the node is started again.
const (
	firstPort = 20000
	lastPort  = 31999
	portTries = 1000
)

// ports are the loopback ports that a cluster's nodes listen on while they run. A
// port stays reserved while its node is down: no other cluster on this machine
// gets it.
//
// A reservation is a socket that is bound and never listens. Linux lets sockets
// share a port if all have SO_REUSEADDR and none listens yet (socket(7)), and
// net.Listen sets it on the node's. A free port is bound without the option, which
// fails if anybody else is bound to it, another reservation included; the option
// is set after that.
//
// Safe for concurrent use.
type ports struct {
	mu   sync.Mutex
	held map[string]int // file descriptor by host:port
}

// free returns n addresses that nobody is bound to, and reserves them.
func (p *ports) free(n int) ([]string, error) {
	addresses := make([]string, 0, n)
	for range portTries {
		if len(addresses) == n {
			return addresses, nil
		}
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(lastPort-firstPort+1))
		if p.hold(address, false) == nil {
			addresses = append(addresses, address)
		}
	}
	return nil, fmt.Errorf("found %d free loopback ports of %d between %d and %d", len(addresses), n, firstPort, lastPort)
}

// keep reserves the address of a node that had it before. That somebody listens
// there is for the node to report.
func (p *ports) keep(address string) error {
	if err := p.hold(address, true); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	return nil
}

// hold reserves an address; shared allows others that are bound and do not listen,
// such as the ends of connections that are over.
func (p *ports) hold(address string, shared bool) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !ap.Addr().Is4() {
		return fmt.Errorf("%q is no IPv4 host:port", address)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("reserve %s: %w", address, err)
	}
	reuse := func() error { return syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }
	if shared {
		err = reuse()
	}
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())})
	}
	if err == nil && !shared {
		err = reuse()
	}
	if err != nil {
		_ = syscall.Close(fd)
		return fmt.Errorf("reserve %s: %w", address, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = map[string]int{}
	}
	if old, ok := p.held[address]; ok {
		_ = syscall.Close(old)
	}
	p.held[address] = fd
	return nil
}

// release gives all ports back.
func (p *ports) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fd := range p.held {
		_ = syscall.Close(fd)
	}
	p.held = nil
}

// addressFile keeps the members' addresses, which are part of the Raft group's
// own state: a cluster that is started again must have them again.
const addressFile = "addresses.json"

// assign returns an address for every member of o: the one it had before, or a
// free one, which is written down. All are reserved.
func (p *ports) assign(o Options) (map[string]string, error) {
	path := filepath.Join(o.Dir, addressFile)
	addresses, err := readAddresses(path)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, s := range o.Shards {
		for i := range s.Replicas {
			id := memberID(s, i)
			if addresses[id] == "" {
				missing = append(missing, id)
			} else if err := p.keep(addresses[id]); err != nil {
				return nil, fmt.Errorf("local cluster: %s: node %s: %w", path, id, err)
			}
		}
	}
	if len(missing) == 0 {
		return addresses, nil
	}
	free, err := p.free(len(missing))
	if err != nil {
		return nil, err
	}
	for i, id := range missing {
		addresses[id] = free[i]
	}
	return addresses, writeAddresses(path, addresses)
}

func readAddresses(path string) (map[string]string, error) {
	addresses := map[string]string{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return addresses, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &addresses)
	}
	if err != nil {
		return nil, fmt.Errorf("local cluster: addresses of its nodes, %s: %w", path, err)
	}
	return addresses, nil
}

func writeAddresses(path string, addresses map[string]string) error {
	b, err := json.MarshalIndent(addresses, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("local cluster: addresses of its nodes: %w", err)
	}
	return nil
}
