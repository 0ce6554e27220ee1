package apiserver

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// guard starts a process that ends the API server and etcd should this one end
// without having done so, as with a test that takes too long. Until release is
// called it waits for the end of its input, which is this process's.
func guard() (release func(), err error) {
	children, err := childProcesses()
	if err != nil || len(children) == 0 {
		return func() {}, err
	}
	cmd := exec.Command("sh", "-c", "trap '' INT TERM; read -r over || kill -9 "+strings.Join(children, " "))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_, _ = io.WriteString(in, "over\n") // it is told to end, and has nothing to do if it has
		_ = cmd.Wait()
	}, nil
}

// childProcesses returns the ids of this process's children; none where there is no
// /proc to find them in.
func childProcesses() (ids []string, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	own := fmt.Sprint(os.Getpid())
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent …
		_, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == own {
			ids = append(ids, filepath.Base(filepath.Dir(path)))
		}
	}
	return ids, nil
}
