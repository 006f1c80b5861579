package daemon

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"
)

// schedule tells whether a process was kept from running by the host: its threads were ready and got no processor. It
// covers the process and its descendants, since engine process runs guests in a child.
type schedule struct {
	pid   int
	began time.Time
	then  map[int]threadTime
}

// threadTime is what the kernel accounted to a thread.
type threadTime struct {
	ran, waited uint64 // nanoseconds on a processor, and ready without one (/proc/pid/schedstat)
	runnable    bool
}

// maxFamily bounds the processes that are looked at.
const maxFamily = 16

// begin starts a measurement.
func (s *schedule) begin(pid int) {
	s.pid, s.began, s.then = pid, time.Now(), threadTimes(pid)
}

// starved returns how long the worst-off thread has been without a processor although ready since begin. A thread that
// is still waiting is not accounted yet, so one that is runnable and has not run counts in full.
func (s *schedule) starved() time.Duration {
	if s.then == nil {
		return 0
	}
	var worst time.Duration
	for tid, now := range threadTimes(s.pid) {
		was, ok := s.then[tid]
		if !ok {
			continue
		}
		worst = max(worst, time.Duration(now.waited-was.waited))
		if now.runnable && was.runnable && now.ran == was.ran {
			worst = max(worst, time.Since(s.began))
		}
	}
	// A host that starves the driver for ever must not keep a dead one in place.
	const most = 10
	return min(worst, most*time.Since(s.began)/(most+1))
}

func threadTimes(pid int) map[int]threadTime {
	times := map[int]threadTime{}
	family := []int{pid}
	for i := 0; i < len(family) && i < maxFamily; i++ {
		dir := "/proc/" + strconv.Itoa(family[i]) + "/task/"
		tasks, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			times[tid] = readThread(dir + t.Name())
			if b, err := os.ReadFile(dir + t.Name() + "/children"); err == nil {
				for _, f := range strings.Fields(string(b)) {
					if child, err := strconv.Atoi(f); err == nil {
						family = append(family, child)
					}
				}
			}
		}
	}
	return times
}

func readThread(dir string) (t threadTime) {
	if b, err := os.ReadFile(dir + "/schedstat"); err == nil {
		if f := strings.Fields(string(b)); len(f) >= 2 {
			t.ran, _ = strconv.ParseUint(f[0], 10, 64)
			t.waited, _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	if b, err := os.ReadFile(dir + "/stat"); err == nil {
		if i := bytes.LastIndexByte(b, ')'); i >= 0 && i+2 < len(b) {
			t.runnable = b[i+2] == 'R'
		}
	}
	return t
}
