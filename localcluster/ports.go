package localcluster

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports come from below the range that Linux hands to outgoing connections, so
// that the port of a node that is down is not taken by somebody's client before
// the node is started again.
const (
	firstPort = 20000
	lastPort  = 31999
	portTries = 1000
)

// freeAddresses returns n loopback addresses that nobody listens on.
func freeAddresses(n int) ([]string, error) {
	taken := make(map[int]bool, n)
	addresses := make([]string, 0, n)
	for range portTries {
		if len(addresses) == n {
			return addresses, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if taken[port] || !canListen(address) {
			continue
		}
		taken[port] = true
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
