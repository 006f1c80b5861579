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

	stolen time.Duration
}

// threadTime is what the kernel accounted to a thread.
type threadTime struct {
	ran, waited uint64 // nanoseconds on a processor, and ready without one (/proc/pid/schedstat)
	state       byte   // proc(5), /proc/pid/stat
}

// ready reports whether the thread runs, or could.
func (t threadTime) ready() bool { return t.state == 'R' }

// maxFamily bounds the processes that are looked at.
const maxFamily = 16

// begin starts a measurement.
func (s *schedule) begin(pid int) {
	s.pid, s.began, s.then, s.stolen = pid, time.Now(), threadTimes(pid), stolen()
}

// starved returns how long the process was kept from running since begin, at least. A process of which a thread is ready
// to run, or waits for the host's memory or disk, but which did not get the processor time that a look at its rings takes
// is excused for all of it; also what the host's own host took away counts.
func (s *schedule) starved() time.Duration {
	if s.then == nil {
		return 0
	}
	since := time.Since(s.began)
	var waited, ran time.Duration
	eager := false
	for tid, now := range threadTimes(s.pid) {
		was := s.then[tid]
		waited = max(waited, time.Duration(now.waited-was.waited))
		ran += time.Duration(now.ran - was.ran)
		eager = eager || now.ready() || now.state == 'D' // waits for the host
	}
	if eager && ran < enough {
		waited = since
	}
	waited += stolen() - s.stolen
	// A host that starves the driver for ever must not keep a dead one in place.
	return min(waited, since*mostExcused/(mostExcused+1))
}

// enough is the processor time in which a driver that is alive looks at its rings and beats, by far.
const enough = 15 * time.Millisecond

// mostExcused bounds the excuse: after that many periods, silence is a hang.
const mostExcused = 20

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
			t.state = b[i+2]
		}
	}
	return t
}

// stolen returns the processor time that another system on the same hardware took from this one (proc(5), /proc/stat).
func stolen() time.Duration {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	const steal, tick = 8, 10 * time.Millisecond // USER_HZ is 100 everywhere
	f := strings.Fields(line)
	if len(f) <= steal {
		return 0
	}
	n, _ := strconv.ParseInt(f[steal], 10, 64)
	return time.Duration(n) * tick
}
