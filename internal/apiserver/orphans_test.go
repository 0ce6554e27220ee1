package apiserver

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
)

const asChild = "APISERVER_TEST_CHILD"

// A process that is killed leaves none of its own behind.
func TestGuardEndsWhatIsLeft(t *testing.T) {
	if os.Getenv(asChild) != "" {
		beKilled(t)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestGuardEndsWhatIsLeft$")
	cmd.Env = append(os.Environ(), asChild+"=true")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "started\n" {
		t.Fatalf("%q: %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The grandchild has the other end of the pipe, for as long as it lives.
	if rest, err := io.ReadAll(lines); err != nil {
		t.Errorf("%q: %v", rest, err)
	}
	_ = cmd.Wait() // killed
}

// beKilled starts a process, says so and waits for its end.
func beKilled(t *testing.T) {
	cmd := exec.Command("sleep", "600")
	cmd.Stdout = os.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := guard(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("started")
	_ = cmd.Wait()
}

func TestGuardLeavesWhatIsReleased(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release, err := guard()
	if err != nil {
		t.Fatal(err)
	}
	release()
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it was ended: %v", err)
	}
}
