package vfs

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// faults counts what a host device failed to do, where a supervisor reads it; see hv.Spec.HostStatus.
type faults struct{ count, last *atomic.Uint64 }

// faultsOf returns the counters of the table's next device in page; none when it is short of room.
func (t *Table) faultsOf(page []byte) faults {
	at := hv.HostFaults + hv.HostFaultBytes*int(t.devices.Add(1)-1)
	if at+hv.HostFaultBytes > len(page) {
		return faults{}
	}
	count, err1 := counter(page[at:])
	last, err2 := counter(page[at+8:])
	if err1 != nil || err2 != nil {
		return faults{}
	}
	return faults{count, last}
}

// note counts e, unless it is the guest's mistake.
func (f *faults) note(e unix.Errno) {
	switch e {
	case 0, unix.EINVAL, unix.EBADF, unix.EFAULT, unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS:
		return
	}
	if f.count != nil {
		f.last.Store(uint64(e))
		f.count.Add(1)
	}
}
