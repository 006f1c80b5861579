package daemon

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// How disks that fail are told of.
const (
	diskErrorPeriod = 100 * time.Millisecond // between two looks
	diskErrorPause  = 10 * time.Second       // between two events of one disk
)

// diskErrors is what a driver's disks failed to do since graild began to count. A failed request is the client's to deal with: it is neither repeated
// nor a reason to replace the driver.
type diskErrors struct {
	mu    sync.Mutex
	disks map[string]*diskError
}

type diskError struct {
	count uint64
	last  unix.Errno
	told  uint64 // of count
	next  time.Time
}

// add counts failures of a disk, and returns how many an event is to tell of now; 0 for none.
func (d *diskErrors) add(disk string, n uint64, last unix.Errno, now time.Time) (tell uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.disks == nil {
		d.disks = map[string]*diskError{}
	}
	e := d.disks[disk]
	if e == nil {
		if n == 0 {
			return 0
		}
		e = &diskError{}
		d.disks[disk] = e
	}
	if n > 0 {
		e.count, e.last = e.count+n, last
	}
	if e.count == e.told || now.Before(e.next) {
		return 0
	}
	tell = e.count - e.told
	e.told, e.next = e.count, now.Add(diskErrorPause)
	return tell
}

// of returns how often a disk failed, and how the last time.
func (d *diskErrors) of(disk string) (count uint64, last string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.disks[disk]; e != nil {
		return e.count, e.last.Error()
	}
	return 0, ""
}

// watchDisks tells of disks that fail, until quit is closed or the instance is over.
func (dr *driver) watchDisks(inst *driverInstance, quit <-chan struct{}) {
	dr.mu.Lock()
	list := dr.backings
	dr.mu.Unlock()
	if len(list) == 0 {
		return
	}
	page := make([]byte, hv.HostFaultBytes*len(list))
	seen := make([]uint64, len(list))
	look := func() {
		if n, err := unix.Pread(rawFD(inst.hostStatus), page, hv.HostFaults); err != nil || n != len(page) {
			return
		}
		for i, b := range list {
			count := binary.NativeEndian.Uint64(page[i*hv.HostFaultBytes:])
			last := unix.Errno(binary.NativeEndian.Uint64(page[i*hv.HostFaultBytes+8:]))
			if n := dr.diskErrors.add(b.id, count-seen[i], last, time.Now()); n > 0 {
				var why error = last
				if errors.Is(last, unix.EIO) {
					why = errors.New("input/output error, or the file was cut off")
				}
				dr.d.log.Error("disk error", "driver", dr.name(), "disk", b.id, "path", b.path, "requests", n, "error", why)
			}
			seen[i] = count
		}
	}
	for range inst.looks(diskErrorPeriod, quit, nil) {
		look()
	}
	look()
}
