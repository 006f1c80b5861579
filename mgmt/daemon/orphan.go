package daemon

import "time"

// orphanAge is how long the cgroups of a graild that was killed for good lie about.
const orphanAge = 10 * time.Minute

// removeOrphans removes groups that are nobody's any more: no process is in them, and nothing about them has changed for orphanAge.
func (d *Daemon) removeOrphans() {
	first := d.domains.fence.Orphans(groupPrefix)
	if len(first) == 0 {
		return
	}
	timer := time.NewTimer(orphanAge)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.closing:
		return
	}
	if n := d.domains.fence.RemoveOrphans(first); n > 0 {
		d.log.Info("removed cgroups of a graild that is gone", "trees", n)
	}
}
