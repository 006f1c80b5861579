package daemon

import (
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/tenant"
)

// pin has the threads of a process, and of its descendants, run on a set of processors, where no cgroup can see to that. Threads inherit it from the
// one that starts them, and a jailed VMM cannot change it: what is started meanwhile is found by looking again.
func pin(pid int, set string) error {
	list, err := tenant.ParseSet(set)
	if err != nil {
		return err
	}
	var cpus unix.CPUSet
	for _, n := range list {
		cpus.Set(n)
	}
	for seen := 0; ; {
		threads := threadTimes(pid)
		for tid := range threads {
			if err := unix.SchedSetaffinity(tid, &cpus); err != nil && err != unix.ESRCH {
				return err
			}
		}
		if len(threads) <= seen {
			return nil
		}
		seen = len(threads)
	}
}
