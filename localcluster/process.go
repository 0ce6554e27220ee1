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
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("node %s: %w: %s", p.id, p.err, strings.TrimSpace(p.logTail(logTailBytes)))
	}
	return nil
}

// logTail returns the last bytes of what the process printed, for error messages.
func (p *process) logTail(bytesMax int64) string {
	f, err := os.Open(p.logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > bytesMax {
		if _, err := f.Seek(-bytesMax, 2); err != nil {
			return ""
		}
	}
	b := make([]byte, bytesMax)
	n, _ := f.Read(b)
	return string(b[:n])
}

func logName(dir, id string) string { return filepath.Join(dir, id+".log") }

// endedAtStart returns the error of a process that ended before it served.
func (p *process) endedAtStart() error {
	return fmt.Errorf("node %s ended at its start: %s", p.id, strings.TrimSpace(p.logTail(logTailBytes)))
}
