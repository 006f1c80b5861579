package fence

import (
	"io"
	"os"
	"os/exec"
	"testing"
)

// memberEnv makes the test binary a process for a group: there need be no other program where the tests run.
const memberEnv = "GRAIL_TEST_MEMBER"

// What a member does when its standard input ends.
const (
	leave = "leave"
	hog   = "hog" // use up memory
)

func TestMain(m *testing.M) {
	what := os.Getenv(memberEnv)
	if what == "" {
		os.Exit(m.Run())
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	var all [][]byte
	for what == hog {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
}

// startMember starts a process that waits for the end of its standard input.
func startMember(t *testing.T, what string) (*exec.Cmd, io.Closer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), memberEnv+"="+what)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, in
}

// member starts a process that ends with the test.
func member(t *testing.T) int {
	t.Helper()
	cmd, in := startMember(t, leave)
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}
