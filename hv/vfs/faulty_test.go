package vfs

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/inject"
)

func arm(t *testing.T, g *guest, o inject.Order) {
	t.Helper()
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	g.t.Faults.Arm(&o)
}

// Device operations fail, are cut short and are late, as often as was ordered, and the device is asked for nothing else.
func TestFaultyDevice(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		file := hostFile(t, make([]byte, devSize))
		g := newGuest(t, withDevice(t, rw, file, devSize), lend)
		data := bytes.Repeat([]byte{0xaa}, 8192)
		a := g.bytes(data)
		write := devReq{fd: 3, op: abi.DevWrite, off: 0, segs: []vec{{a, 8192}}}
		read := devReq{fd: 3, op: abi.DevRead, off: 0, segs: []vec{{a, 8192}}}
		flush := devReq{fd: 3, op: abi.DevFlush}

		arm(t, g, inject.Order{Fault: inject.IO, How: inject.Error, Errno: int(unix.EIO), Times: 2, Op: inject.OpWrite})
		if got := g.devio(read, write, flush, write, write); got[0] != 8192 || got[1] != -int64(unix.EIO) || got[2] != 0 || got[3] != got[1] || got[4] != 8192 {
			t.Errorf("errors: %v", got)
		}
		arm(t, g, inject.Order{Fault: inject.IO, How: inject.Error, Errno: int(unix.ENOSPC), Times: 1})
		if got := g.devio(read, flush, write); got[0] != 8192 || got[1] != 0 || got[2] != -int64(unix.ENOSPC) {
			t.Errorf("no space: %v", got)
		}

		zero := g.bytes(make([]byte, 8192))
		g.devio(devReq{fd: 3, op: abi.DevWrite, off: 0, segs: []vec{{zero, 8192}}})
		arm(t, g, inject.Order{Fault: inject.IO, How: inject.Short, Times: 1, Seed: 3})
		got := g.devio(flush, devReq{fd: 3, op: abi.DevWrite, off: 0, segs: []vec{{g.bytes(data), 100}, {g.bytes(data), 8092}}})
		disk := make([]byte, 8192)
		unix.Pread(file, disk, 0)
		if n := got[1]; n <= 0 || n >= 8192 || n%512 != 0 || !bytes.Equal(disk[:n], data[:n]) || bytes.IndexByte(disk[n:], 0xaa) >= 0 {
			t.Errorf("short write: %v", got)
		}
		arm(t, g, inject.Order{Fault: inject.IO, How: inject.Short, Times: 1})
		if n := g.ok(unix.SYS_PREAD64, 3, a, 8192, 0); n == 0 || n >= 8192 {
			t.Errorf("short pread: %d", n)
		}
		arm(t, g, inject.Order{Fault: inject.IO, How: inject.Error, Times: 3, Errno: int(unix.EIO)})
		g.fails(unix.EIO, unix.SYS_PREAD64, 3, a, 8192, 0)
		g.fails(unix.EIO, unix.SYS_PWRITE64, 3, a, 8192, 0)
		g.fails(unix.EIO, unix.SYS_FDATASYNC, 3)
		g.ok(unix.SYS_FDATASYNC, 3)

		arm(t, g, inject.Order{Fault: inject.IO, How: inject.Slow, DelayMs: 30, Times: 1})
		began := time.Now()
		if got := g.devio(write, write); got[0] != 8192 || got[1] != 8192 || time.Since(began) < 30*time.Millisecond {
			t.Errorf("slow: %v after %v", got, time.Since(began))
		}
		if g.t.Faults.IO.Load() != nil {
			t.Error("a fault is still armed")
		}
	})
}

// A packet is never cut.
func TestShortPacket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	cfg := bare()
	cfg.Caps = []hv.CapSpec{{Kind: abi.CapPacket, Rights: rw, FD: fds[0]}}
	g := newGuest(t, cfg, true)
	arm(t, g, inject.Order{Fault: inject.IO, How: inject.Short, Times: 1})
	if got := g.devio(devReq{fd: 3, op: abi.DevWrite, segs: []vec{{g.alloc(1000), 1000}}}); got[0] != 1000 {
		t.Errorf("%v", got)
	}
}

// bellGuest is a guest with a kick, 3, and a call, 4.
func bellGuest(t *testing.T) (g *guest, kick, call int) {
	kick, call = doorbell(t), doorbell(t)
	cfg := bare()
	cfg.Caps = []hv.CapSpec{{Kind: abi.CapKick, Rights: rw, FD: kick}, {Kind: abi.CapCall, Rights: rw, FD: call}}
	return newGuest(t, cfg, true), kick, call
}

// wait is SysWait for the kick; it returns whether the kick came.
func (g *guest) wait(t *testing.T, timeout time.Duration) bool {
	t.Helper()
	p := g.bytes(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 3), unix.POLLIN))
	return g.ok(abi.SysWait, p, 1, uint64(timeout)) == 1
}

func rung(t *testing.T, fd int) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err == unix.EAGAIN {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

func TestFaultyBells(t *testing.T) {
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	g, kick, call := bellGuest(t)

	// Calls are lost, kicks are not, when it is said so.
	arm(t, g, inject.Order{Fault: inject.Bell, How: inject.Lost, Op: inject.OpCall, Times: 1})
	p := g.bytes(one)
	if n := g.ok(unix.SYS_WRITE, 4, p, 8); n != 8 || rung(t, call) != 0 {
		t.Error("the call came through")
	}
	g.ok(unix.SYS_WRITE, 4, p, 8)
	if n := rung(t, call); n != 1 {
		t.Errorf("%d calls after the one that was lost", n)
	}

	arm(t, g, inject.Order{Fault: inject.Bell, How: inject.Lost, Op: inject.OpKick, Times: 1})
	unix.Write(kick, one)
	if g.wait(t, 20*time.Millisecond) {
		t.Error("the kick came through")
	}
	unix.Write(kick, one)
	if !g.wait(t, time.Second) {
		t.Error("the second kick was lost, too")
	}

	// The kick that is lost leaves the guest waiting for the next.
	arm(t, g, inject.Order{Fault: inject.Bell, How: inject.Lost, Op: inject.OpKick, Times: 1})
	unix.Write(kick, one)
	go func() {
		for rang := false; !rang; rang = g.t.Faults.Bells.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		unix.Write(kick, one)
	}()
	if !g.wait(t, 10*time.Second) {
		t.Error("a kick after a lost one did not wake the guest")
	}

	arm(t, g, inject.Order{Fault: inject.Bell, How: inject.Double, Op: inject.OpKick, Times: 1})
	unix.Write(kick, one)
	if !g.wait(t, time.Second) || !g.wait(t, time.Second) || g.wait(t, 0) {
		t.Error("a kick did not come exactly twice")
	}
	arm(t, g, inject.Order{Fault: inject.Bell, How: inject.Double, Op: inject.OpCall, Times: 1})
	g.ok(unix.SYS_WRITE, 4, p, 8)
	if n := rung(t, call); n != 2 {
		t.Errorf("%d calls", n)
	}
}
