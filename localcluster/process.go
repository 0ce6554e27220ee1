package localcluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is one storage node: a command line that can be started again after
// its process has ended.
type process struct {
	id      string
	address string
	argv    []string
	logFile string
	logFrom int64 // size of the file when the present process was started; guarded by mu

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been reaped
	err    error         // how it ended, valid once exited is closed
}

// start begins a process. The kernel ends it when this one ends, so that a
// killed demo leaves nothing behind.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("node %s runs already, as process %d", p.id, p.cmd.Process.Pid)
	}
	log, err := os.OpenFile(p.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("node %s: log file: %w", p.id, err)
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return fmt.Errorf("node %s: log file: %w", p.id, err)
	}
	p.logFrom = info.Size()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("node %s: start %s: %w", p.id, p.argv[0], err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited, p.err = cmd, exited, nil
	go p.reap(cmd, exited)
	return nil
}

func (p *process) reap(cmd *exec.Cmd, exited chan struct{}) {
	err := cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.err = nil, err
	close(exited)
}

// signal sends sig and reports whether there was a process to send it to.
func (p *process) signal(sig syscall.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil && p.cmd.Process.Signal(sig) == nil
}

// running returns the channel that is closed when the present process ends, or
// nil when none runs.
func (p *process) running() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	return p.exited
}

// kill ends the process with SIGKILL and waits until it is reaped.
func (p *process) kill() {
	if exited := p.running(); exited != nil {
		p.signal(syscall.SIGKILL)
		<-exited
	}
}

// stop asks the process to end and kills it when it has not within grace. The
// error says that it had to, or with what the process ended.
func (p *process) stop(grace time.Duration) error {
	exited := p.running()
	if exited == nil {
		return nil
	}
	p.signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-exited:
		return p.endError()
	case <-timer.C:
		p.kill()
		return fmt.Errorf("node %s did not end within %s of SIGTERM and was killed", p.id, grace)
	}
}

func (p *process) endError() error {
	if err := p.end(); err != nil {
		return fmt.Errorf("node %s: %w%s", p.id, err, p.printed())
	}
	return nil
}

// end returns how the last process ended.
func (p *process) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// listens reports whether the present process listens on its address.
func (p *process) listens() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false, nil
	}
	return listens(p.cmd.Process.Pid, p.address)
}

const (
	logTailBytes = 4 << 10
	logTailLines = 6
	logLineRunes = 200
)

// logTail returns the last lines that the process printed since it was started,
// each cut to a width that can be read.
func (p *process) logTail() string {
	p.mu.Lock()
	from := p.logFrom
	p.mu.Unlock()
	f, err := os.Open(p.logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	begin := max(from, info.Size()-logTailBytes)
	b := make([]byte, max(0, info.Size()-begin))
	n, _ := f.ReadAt(b, begin) // fewer bytes if the file shrank
	lines := strings.Split(strings.TrimSpace(string(b[:n])), "\n")
	lines = lines[max(0, len(lines)-logTailLines):]
	for i, line := range lines {
		if runes := []rune(line); len(runes) > logLineRunes {
			lines[i] = string(runes[:logLineRunes]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}

// printed returns logTail as the end of an error message.
func (p *process) printed() string {
	tail := p.logTail()
	if tail == "" {
		return " (it has printed nothing)"
	}
	return "; it has printed, in " + p.logFile + ":\n" + tail
}

func logName(dir, id string) string { return filepath.Join(dir, id+".log") }

// endedAtStart returns the error of a process that ended before it served.
func (p *process) endedAtStart() error {
	return fmt.Errorf("node %s ended at its start%s", p.id, p.printed())
}
