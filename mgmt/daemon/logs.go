package daemon

import (
	"cmp"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/mgmt/api"
)

// logPatience is how long a reader of a log waits for what was printed and is not logged yet.
const logPatience = 2 * time.Second

// Log tells where the log of a VM or a driver is, also of a VM that is gone, when what it has printed until now is in it.
func (d *Daemon) Log(name string) (api.Log, error) {
	l := api.Log{Name: name}
	if err := checkName("name", name, maxVMName); err != nil {
		return l, err
	}
	if v, err := d.vm(name); err == nil {
		l.Live = v.view().State.Live()
	} else if _, err := d.driver(name); err == nil {
		l.Live, l.Driver = true, true
	} else if len(d.logFiles(name)) == 0 {
		return l, api.Errorf(api.NotFound, "there is no VM %q, and no log of one; grailctl ps -a lists the VMs that there are, grailctl logs --list the logs", name)
	} else {
		l.Gone = true
	}
	d.settle(name)
	l.Files, l.Texts = d.logFiles(name), d.logsOf(name)
	return l, nil
}

// settle returns when what a VM or driver has printed is logged, or when that takes too long.
func (d *Daemon) settle(name string) {
	deadline := time.NewTimer(logPatience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for slot := range slots {
		d.mu.Lock()
		o := d.outputs[d.logPath(name, slot)]
		d.mu.Unlock()
		if o == nil {
			continue
		}
		o.hasten()
		select {
		case <-o.served:
		case <-o.done:
		case <-deadline.C:
			return
		}
		for o.client.pending() {
			select {
			case <-tick.C:
			case <-deadline.C:
				return
			}
		}
	}
}

// logFiles returns the logs of a VM or a driver that there are.
func (d *Daemon) logFiles(name string) []string {
	paths := []string{}
	for slot := range slots {
		if st, err := os.Stat(d.logPath(name, slot)); err == nil && st.Mode().IsRegular() {
			paths = append(paths, d.logPath(name, slot))
		}
	}
	return paths
}

// forgetLogs removes the logs of a VM or a driver, and reports whether there was one.
func (d *Daemon) forgetLogs(name string) bool {
	had := false
	for slot := range slots {
		path := d.logPath(name, slot)
		d.mu.Lock()
		if o := d.outputs[path]; o != nil {
			o.removed.Store(true)
			o.hasten()
		}
		d.mu.Unlock()
		if os.Remove(path) == nil {
			had = true
		}
	}
	return had
}

// kept is a log on the disk.
type kept struct {
	path, name string
	at         time.Time
	bytes      uint64 // that the disk has for it
	live       bool   // something writes to it
}

// allLogs returns all logs, the newest first.
func (d *Daemon) allLogs() []kept {
	entries, err := os.ReadDir(d.dirs.Logs())
	if err != nil {
		return nil
	}
	var list []kept
	for _, e := range entries {
		i := strings.LastIndexByte(e.Name(), '.')
		var st unix.Stat_t
		k := kept{path: filepath.Join(d.dirs.Logs(), e.Name())}
		if i < 0 || unix.Lstat(k.path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		k.name, k.at, k.bytes = e.Name()[:i], time.Unix(st.Mtim.Unix()), uint64(st.Blocks)*512
		d.mu.Lock()
		k.live = d.outputs[k.path] != nil
		d.mu.Unlock()
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b kept) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.path, b.path)) })
	return list
}

// Logs lists the logs of VMs and drivers, also of those that are gone, by name.
func (d *Daemon) Logs() []api.KeptLog {
	list := []api.KeptLog{}
	for _, k := range d.allLogs() {
		i := slices.IndexFunc(list, func(l api.KeptLog) bool { return l.Name == k.name })
		if i < 0 {
			_, vmErr := d.vm(k.name)
			_, driverErr := d.driver(k.name)
			list = append(list, api.KeptLog{Name: k.name, Changed: k.at, Gone: vmErr != nil && driverErr != nil})
			i = len(list) - 1
		}
		list[i].Bytes += k.bytes
		list[i].Live = list[i].Live || k.live
	}
	slices.SortFunc(list, func(a, b api.KeptLog) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// finishLog gives back what a log that has ended does not use of the disk, and removes the oldest ones of those that have ended when there are too many.
func (d *Daemon) finishLog(o *output, dr *driver) {
	if o.removed.Load() {
		return
	}
	now := time.Now()
	_ = os.Chtimes(o.path, now, now)
	trimLog(o.client.files[len(o.client.files)-1])
	d.sweepLogs(dr.rec.Config.Console, o.path)
}

// trimLog gives back the blocks behind the records of a log that never went round. What the driver wrote there is a number, and is bounded.
func trimLog(f *os.File) {
	var b [8]byte
	st, err := f.Stat()
	if err != nil {
		return
	}
	if _, err := f.ReadAt(b[:], logfile.HeadOffset); err != nil {
		return
	}
	const page = 4096
	head := binary.LittleEndian.Uint64(b[:])
	if size := uint64(st.Size()); head < size-2*page {
		from := (logfile.HeaderBytes + head + page - 1) / page * page
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(from), int64(size-from))
	}
}

// sweepLogs removes the oldest logs of those that nothing writes to, beyond a number and a sum of bytes. The one that has just ended stays.
func (d *Daemon) sweepLogs(cfg *api.ConsoleConfig, just string) {
	n, bytes := 0, uint64(0)
	for _, k := range d.allLogs() {
		if k.live && k.path != just {
			continue
		}
		n++
		bytes += k.bytes
		if k.path != just && (n > cfg.Keep || bytes > cfg.KeepBytes) {
			d.log.Info("removing a log that is too old", "vm", k.name, "bytes", k.bytes)
			_ = os.Remove(k.path)
		}
	}
}
