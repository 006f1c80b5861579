package kvm

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
)

// VCPU is one virtual CPU in guest user mode. All methods but Kick are for one thread at a time.
type VCPU struct {
	m   *Machine
	id  int
	fd  uintptr
	mem []byte
	run *runData
	// inKernel is set when the last exit left the CPU in kernel mode (CPL 0), so that it has to be put back.
	inKernel bool
	// sysret is set when the last exit was a system call at CPL 0: the stub's SYSRETQ leads back to user
	// mode, as long as the registers it uses still say what they said.
	sysret bool
	tid    atomic.Int32 // host thread that runs it, 0: none
}

// ExitKind says why the guest stopped.
type ExitKind int

// The kinds of exit.
const (
	ExitKicked    ExitKind = iota // Kick, or a signal to the host thread
	ExitSyscall                   // SYSCALL: number in RAX, RIP behind the instruction
	ExitException                 // an exception in user mode
	// ExitNoMemory is an access to guest memory that the host cannot provide: a mapped file that has been
	// truncated or cannot be read. RIP is at the instruction.
	ExitNoMemory
	ExitFailed // the vCPU cannot go on; see Exit.Reason
)

// Exit describes why Run returned.
type Exit struct {
	Kind   ExitKind
	Vector int    // of ExitException
	Error  uint64 // its error code, or 0
	Addr   uint64 // the address of a page fault
	Reason string // of ExitFailed
}

func newVCPU(m *Machine, id int) (*VCPU, error) {
	fd, err := gokvm.CreateVCPU(m.vm, id)
	if err != nil {
		return nil, fmt.Errorf("kvm: create vCPU %d: %w", id, err)
	}
	v := &VCPU{m: m, id: id, fd: fd}
	if v.mem, v.run, err = mapRun(fd, m.runSize); err == nil {
		err = v.setUp()
	}
	if err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

func (v *VCPU) close() {
	if v.mem != nil {
		unix.Munmap(v.mem)
	}
	unix.Close(int(v.fd))
}

// Control-register and MSR values (Intel SDM vol. 3 §2.5 Control Registers, §2.2.1 Extended Feature Enable
// Register; vol. 4 Table 2-2). SMEP and SMAP are off: the stub page is a user page.
const (
	cr0 = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<16 | 1<<18 | 1<<31 // PE MP ET NE WP AM PG
	cr4 = 1<<5 | 1<<9 | 1<<10 | 1<<18                       // PAE OSFXSR OSXMMEXCPT OSXSAVE
	// efer: SCE LME LMA NXE
	efer = 1<<0 | 1<<8 | 1<<10 | 1<<11

	msrSTAR  = 0xc0000081
	msrLSTAR = 0xc0000082
	msrCSTAR = 0xc0000083
	msrFMASK = 0xc0000084
	// syscallMask clears TF, IF, DF, NT and AC on entry to the stub.
	syscallMask = amd64.FlagTF | amd64.FlagIF | amd64.FlagDF | 1<<14 | 1<<18
)

// ioctl numbers that gokvm lacks or encodes slowly (KVM api.rst §4.20, §4.19, §4.42, §4.43).
var (
	kvmSetCPUID2 = gokvm.IIOW(0x90, 8)
	kvmSetMSRs   = gokvm.IIOW(0x89, 8)
	kvmGetXSave  = gokvm.IIOR(0xa4, 4096)
	kvmSetXSave  = gokvm.IIOW(0xa5, 4096)
	kvmRun       = gokvm.IIO(0x80)
)

func (v *VCPU) setUp() error {
	if err := ioctlBytes(v.fd, kvmSetCPUID2, v.m.cpuid); err != nil {
		return fmt.Errorf("kvm: set CPUID: %w", err)
	}
	sregs, err := gokvm.GetSregs(v.fd)
	if err != nil {
		return fmt.Errorf("kvm: get special registers: %w", err)
	}
	amd64.FillTask(v.m.system, v.id)
	sregs.CR0, sregs.CR3, sregs.CR4, sregs.EFER = cr0, v.m.root, cr4, efer
	sregs.GDT.Base, sregs.GDT.Limit = amd64.SystemBase+amd64.GDTOffset, amd64.GDTLimit
	sregs.IDT.Base, sregs.IDT.Limit = amd64.SystemBase+amd64.IDTOffset, amd64.IDTLimit
	sregs.TR = gokvm.Segment{Base: amd64.TaskAddress(v.id), Limit: amd64.TSSLimit, Selector: amd64.TaskState,
		Typ: 11, Present: 1}
	sregs.LDT = gokvm.Segment{Unusable: 1}
	sregs.CS, sregs.SS = userCode, userData
	sregs.DS, sregs.ES = userData, userData
	sregs.FS, sregs.GS = userData, userData
	if err := gokvm.SetSregs(v.fd, sregs); err != nil {
		return fmt.Errorf("kvm: set special registers: %w", err)
	}
	if v.m.xcr0 != 0 {
		xcrs := gokvm.XCRS{NrXRCS: 1}
		xcrs.Registers[0].Value = v.m.xcr0
		if err := gokvm.SetXCRS(v.fd, &xcrs); err != nil {
			return fmt.Errorf("kvm: set XCR0: %w", err)
		}
	}
	msrs := binary.LittleEndian.AppendUint64(nil, 4)
	for _, e := range [][2]uint64{
		{msrSTAR, amd64.KernelCode<<32 | (amd64.UserData&^3-8|3)<<48},
		{msrLSTAR, v.m.entry}, {msrCSTAR, amd64.StubSyscall}, {msrFMASK, syscallMask},
	} {
		msrs = binary.LittleEndian.AppendUint64(msrs, e[0])
		msrs = binary.LittleEndian.AppendUint64(msrs, e[1])
	}
	if err := ioctlBytes(v.fd, kvmSetMSRs, msrs); err != nil {
		return fmt.Errorf("kvm: set MSRs: %w", err)
	}
	v.zeroTSCOffset()
	v.run.validRegs = syncRegs | syncSregs
	v.run.sregs = *sregs
	v.reset()
	return nil
}

// Flat 64-bit user segments; KVM checks that they agree with the privilege level.
var (
	userCode = gokvm.Segment{Limit: 0xffffffff, Selector: amd64.UserCode, Typ: 11, Present: 1, DPL: 3, S: 1, L: 1, G: 1}
	userData = gokvm.Segment{Limit: 0xffffffff, Selector: amd64.UserData, Typ: 3, Present: 1, DPL: 3, DB: 1, S: 1, G: 1}
)

// reset clears the registers that a thread can have changed, but not the FPU's (see SetFPU).
func (v *VCPU) reset() {
	v.run.regs = amd64.Regs{RFLAGS: amd64.SafeFlags(0)}
	v.run.sregs.DS, v.run.sregs.ES = userData, userData
	v.run.sregs.FS, v.run.sregs.GS = userData, userData
	v.run.sregs.CS, v.run.sregs.SS = userCode, userData
	v.inKernel, v.sysret = false, false
	v.run.dirtyRegs = syncRegs | syncSregs
	v.run.clearImmediateExit()
}

// Regs returns the guest's registers, to read and change between two Runs. Every change of RIP, RSP, RFLAGS
// or of RCX or R11 after a system call must be followed by Restore before the next Run.
func (v *VCPU) Regs() *amd64.Regs { return &v.run.regs }

// Restore makes the next Run load all registers as they stand in Regs, RCX and R11 included. RFLAGS is made safe. The
// caller has checked that RIP is amd64.Canonical.
func (v *VCPU) Restore() {
	v.sysret = false
	v.run.regs.RFLAGS = amd64.SafeFlags(v.run.regs.RFLAGS)
}

// FSBase returns the base of the FS segment, which is the thread pointer.
func (v *VCPU) FSBase() uint64 { return v.run.sregs.FS.Base }

// SetFSBase sets the thread pointer; addr must be amd64.Canonical.
func (v *VCPU) SetFSBase(addr uint64) {
	v.run.sregs.FS.Base = addr
	v.run.dirtyRegs |= syncSregs
}

// Run enters the guest in user mode and returns its next exit (KVM api.rst §4.10 KVM_RUN). Preconditions: the
// goroutine is locked to its OS thread, and no other Run on v is in progress. Errors: the host's; v is unusable
// then.
func (v *VCPU) Run() (Exit, error) {
	r := v.run
	if v.inKernel {
		if v.sysret {
			// RCX and R11 hold RIP and RFLAGS of user mode already; the stub's SYSRETQ uses them.
			r.regs.RIP = amd64.StubSysret
		} else {
			r.sregs.CS, r.sregs.SS = userCode, userData
			r.dirtyRegs |= syncSregs
		}
	}
	r.dirtyRegs |= syncRegs
	v.tid.Store(int32(unix.Gettid()))
	_, err := gokvm.Ioctl(v.fd, kvmRun, 0)
	v.tid.Store(0)
	v.inKernel, v.sysret = false, false
	if err == unix.EINTR || err == unix.EAGAIN {
		return v.interrupted()
	}
	r.dirtyRegs = 0
	if err != nil {
		if err == unix.EFAULT {
			v.inKernel = r.sregs.SS.DPL == 0
			if v.inKernel {
				return Exit{Kind: ExitFailed, Reason: fmt.Sprintf("the memory of the trap stub at RIP %#x is gone", r.regs.RIP)}, nil
			}
			return Exit{Kind: ExitNoMemory}, nil
		}
		return Exit{}, fmt.Errorf("kvm: run vCPU %d: %w", v.id, err)
	}
	if r.exitReason != exitIO {
		return v.failed(), nil
	}
	port := int(r.exit[0] >> 16 & 0xffff)
	v.inKernel = r.sregs.SS.DPL == 0
	switch {
	case port == amd64.PortSyscall:
		return v.syscall(), nil
	case port >= amd64.PortException && port < amd64.PortException+amd64.Vectors && v.inKernel:
		return v.exception(port - amd64.PortException), nil
	}
	return Exit{Kind: ExitFailed, Reason: fmt.Sprintf("output to port %#x", port)}, nil
}

// interrupted ends a Run that a kick or a signal stopped. Where the CPU was on its way out of user mode, or back
// into it, the way is gone for it: nobody may see user mode with registers that are the trap stub's.
func (v *VCPU) interrupted() (Exit, error) {
	r := v.run
	r.dirtyRegs = 0
	v.inKernel = r.sregs.SS.DPL == 0
	if r.regs.RIP == v.m.entry || r.regs.RIP == amd64.StubSyscall {
		return v.syscall(), nil
	}
	if !v.inKernel {
		return Exit{Kind: ExitKicked}, nil
	}
	if r.regs.RIP == amd64.StubSysret {
		r.regs.RIP, r.regs.RFLAGS = r.regs.RCX, amd64.SafeFlags(r.regs.R11)
		return Exit{Kind: ExitKicked}, nil
	}
	if vector, ok := amd64.StubVector(r.regs.RIP); ok {
		return v.exception(vector), nil
	}
	return Exit{Kind: ExitFailed, Reason: fmt.Sprintf("kernel mode at RIP %#x", r.regs.RIP)}, nil
}

// syscall makes the registers those of user mode behind its SYSCALL.
func (v *VCPU) syscall() Exit {
	r := v.run
	r.regs.RIP = r.regs.RCX
	r.regs.RFLAGS = amd64.SafeFlags(r.regs.R11)
	r.regs.R11 = r.regs.RFLAGS
	v.sysret = v.inKernel
	if !amd64.Canonical(r.regs.RIP) {
		// Only a jump into the stub can do this; SYSCALL stores a canonical address.
		r.regs.RIP = 0
		v.sysret = false
	}
	return Exit{Kind: ExitSyscall}
}

// exception makes the registers those of user mode at the exception.
func (v *VCPU) exception(vector int) Exit {
	f := amd64.ReadException(v.m.system, v.id, vector)
	e := Exit{Kind: ExitException, Vector: vector, Error: f.Error}
	r := v.run
	if vector == amd64.VectorPageFault {
		e.Addr = r.sregs.CR2
	}
	if f.CS&3 != 3 {
		return Exit{Kind: ExitFailed, Reason: fmt.Sprintf("exception %d in the trap stub at %#x, error %#x, address %#x",
			vector, f.RIP, f.Error, e.Addr)}
	}
	r.regs.RIP, r.regs.RSP, r.regs.RFLAGS = f.RIP, f.RSP, f.RFLAGS
	return e
}

// Exit reasons (KVM api.rst §5 The kvm_run structure).
const (
	exitIO        = 2
	exitHLT       = 5
	exitMMIO      = 6
	exitShutdown  = 8
	exitFailEntry = 9
	exitInternal  = 17
)

func (v *VCPU) failed() Exit {
	r := v.run
	reason := fmt.Sprintf("exit reason %d", r.exitReason)
	switch r.exitReason {
	case exitHLT:
		reason = "halted"
	case exitMMIO:
		reason = fmt.Sprintf("access to guest-physical address %#x, where nothing is", r.exit[0])
	case exitShutdown:
		reason = "triple fault"
	case exitFailEntry:
		reason = fmt.Sprintf("the CPU refused to enter the guest, reason %#x", r.exit[0])
	case exitInternal:
		reason = fmt.Sprintf("KVM internal error %d (instruction emulation, most likely)", uint32(r.exit[0]))
	}
	return Exit{Kind: ExitFailed, Reason: fmt.Sprintf("%s at RIP %#x", reason, r.regs.RIP)}
}

// Kick makes a Run in progress return ExitKicked soon, or the next one at once. It may be called from any thread.
func (v *VCPU) Kick() {
	v.run.setImmediateExit()
	if tid := v.tid.Load(); tid != 0 {
		// The Go runtime handles SIGURG itself and ignores one that it did not ask for.
		unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
	}
}

// Unkick forgets a Kick. The caller looks for the reason of a Kick only afterwards, so that none is lost.
func (v *VCPU) Unkick() { v.run.clearImmediateExit() }
