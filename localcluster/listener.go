package localcluster

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// listenState is TCP_LISTEN in /proc/net/tcp.
const listenState = "0A"

// listens reports whether the process itself listens on the port of the address.
// That the port takes connections does not say so: somebody else may have it, and
// the process is about to fail.
func listens(pid int, address string) (bool, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return false, err
	}
	sockets := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if err := listeners(table, ap.Port(), sockets); err != nil && !os.IsNotExist(err) {
			return false, err
		}
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false, err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && sockets[target] {
			return true, nil
		}
	}
	return false, nil
}

// listeners adds the sockets that listen on the port, by the name that links to
// them have.
func listeners(table string, port uint16, sockets map[string]bool) error {
	f, err := os.Open(table)
	if err != nil {
		return err
	}
	defer f.Close()
	suffix := fmt.Sprintf(":%04X", port)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl local_address rem_address st queues timer retransmits uid timeout inode …
		fields := strings.Fields(lines.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[1], suffix) && fields[3] == listenState {
			sockets["socket:["+fields[9]+"]"] = true
		}
	}
	return lines.Err()
}
