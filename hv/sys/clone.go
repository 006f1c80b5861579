package sys

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/vcpu/kvm"
)

// cloneThread are the flags that make a thread of the same process; all of them are needed.
const cloneThread = unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_THREAD

// clone starts a thread. Processes do not exist: without cloneThread the call is denied and counted.
func (t *thread) clone(a [6]uint64) (uint64, error) {
	flags, stack, parentTID, childTID, tls := a[0], a[1], a[2], a[3], a[4]
	g := t.g
	if flags&cloneThread != cloneThread {
		g.deny(unix.SYS_CLONE)
		return 0, unix.ENOSYS
	}
	if flags&unix.CLONE_SETTLS != 0 && !amd64.Canonical(tls) {
		return 0, unix.EPERM
	}
	var fpu [kvm.MaxFPUSize]byte
	if err := t.cpu.FPU(fpu[:]); err != nil {
		return 0, err
	}
	child, err := g.newThread()
	if err != nil {
		return 0, err
	}
	tid := uint64(child.tid)
	r := child.cpu.Regs()
	*r = *t.cpu.Regs()
	r.RAX = 0
	if stack != 0 {
		r.RSP = stack
	}
	child.cpu.SetFSBase(t.cpu.FSBase())
	if flags&unix.CLONE_SETTLS != 0 {
		child.cpu.SetFSBase(tls)
	}
	g.signals.mu.Lock()
	child.mask = t.mask
	g.signals.mu.Unlock()
	child.name = t.name
	if flags&unix.CLONE_CHILD_CLEARTID != 0 {
		child.clearTID = childTID
	}
	// Failures to store the numbers are the guest's own affair, as in Linux.
	if flags&unix.CLONE_PARENT_SETTID != 0 {
		_ = t.store32(parentTID, uint32(tid))
	}
	if flags&unix.CLONE_CHILD_SETTID != 0 {
		_ = t.store32(childTID, uint32(tid))
	}
	g.startThread(child, fpu[:])
	return tid, nil
}

// lastExit notes the exit code of the last thread to leave, which is the guest's.
func (g *Guest) lastExit(t *thread, code int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.threads) == 1 && g.end == nil {
		g.end = &End{Cause: hv.CauseExit, Code: code}
	}
}

// Codes of arch_prctl(2).
const (
	archSetGS = 0x1001
	archSetFS = 0x1002
	archGetFS = 0x1003
)

func (t *thread) archPrctl(a [6]uint64) (uint64, error) {
	switch a[0] {
	case archSetFS:
		if !amd64.Canonical(a[1]) {
			return 0, unix.EPERM
		}
		t.cpu.SetFSBase(a[1])
		t.tls.Store(a[1])
		return 0, nil
	case archGetFS:
		return 0, t.store64(a[1], t.cpu.FSBase())
	}
	return 0, unix.EINVAL
}

func (t *thread) schedGetaffinity(a [6]uint64) (uint64, error) {
	var mask [8]byte
	if a[1] < 8 {
		return 0, unix.EINVAL
	}
	n := t.g.cfg.CPUs
	if n <= 0 {
		n = hostCPUs()
	}
	binary.LittleEndian.PutUint64(mask[:], 1<<min(n, 63)-1)
	return 8, t.g.space.CopyOut(a[2], mask[:])
}

func mebibytes(n uint64) string { return fmt.Sprintf("%d MiB", n>>20) }
