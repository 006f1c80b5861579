package hv

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A program that tunes its runtime has one thread that sleeps longer: the one that sleeps by nanosleep, as only the runtime's monitor does.
func TestTuneRuntime(t *testing.T) {
	if os.Getenv("GRAIL_TEST_TUNE") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestTuneRuntime$")
		cmd.Env = append(os.Environ(), "GRAIL_TEST_TUNE=1")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, b)
		}
		return
	}
	if err := TuneRuntime(); err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var slow []string
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if err == nil && strings.TrimSpace(string(b)) == strconv.FormatInt(monitorSlack.Nanoseconds(), 10) {
			slow = append(slow, task.Name())
		}
	}
	if len(slow) != 1 {
		t.Fatalf("of %d threads these sleep longer: %v", len(tasks), slow)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		b, err := os.ReadFile("/proc/" + slow[0] + "/syscall")
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(b), strconv.Itoa(unix.SYS_NANOSLEEP)+" ") {
			return
		}
	}
	t.Error("the thread that sleeps longer was never seen in nanosleep: it is not the runtime's monitor")
}
