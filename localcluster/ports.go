package localcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
)

// Ports come from below the range that Linux hands to outgoing connections, so
// that the port of a node that is down is not taken by somebody's client before
// the node is started again.
const (
	firstPort = 20000
	lastPort  = 31999
	portTries = 1000
)

// freeAddresses returns n loopback addresses that nobody listens on and that are
// not among the used ones, whose owners may be down.
func freeAddresses(n int, used []string) ([]string, error) {
	taken := make(map[string]bool, n+len(used))
	for _, address := range used {
		taken[address] = true
	}
	addresses := make([]string, 0, n)
	for range portTries {
		if len(addresses) == n {
			return addresses, nil
		}
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(lastPort-firstPort+1))
		if taken[address] || !canListen(address) {
			continue
		}
		taken[address] = true
		addresses = append(addresses, address)
	}
	return nil, fmt.Errorf("found %d free loopback ports of %d between %d and %d", len(addresses), n, firstPort, lastPort)
}

func canListen(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// addressFile keeps the members' addresses, which are part of the Raft group's
// own state: a cluster that is started again must have them again.
const addressFile = "addresses.json"

// assignAddresses returns an address for every member of o: the one it had
// before, or a free one, which is written down.
func assignAddresses(o Options) (map[string]string, error) {
	path := filepath.Join(o.Dir, addressFile)
	addresses, err := readAddresses(path)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, s := range o.Shards {
		for i := range s.Replicas {
			if id := memberID(s, i); addresses[id] == "" {
				missing = append(missing, id)
			}
		}
	}
	if len(missing) == 0 {
		return addresses, nil
	}
	free, err := freeAddresses(len(missing), slices.Collect(maps.Values(addresses)))
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
