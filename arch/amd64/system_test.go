package amd64

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/arch/x86/x86asm"
)

func TestVDSO(t *testing.T) {
	image := VDSO()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_DYN || f.Machine != elf.EM_X86_64 || len(f.Progs) != 2 {
		t.Fatalf("%v %v with %d program headers", f.Type, f.Machine, len(f.Progs))
	}
	// The code must decode to what its comments say; a few landmarks are enough to notice a slip.
	code := image[1024:]
	var text []string
	for pc := 0; len(text) < 60; {
		inst, err := x86asm.Decode(code[pc:], 64)
		if err != nil || inst.Op == 0 {
			t.Fatalf("at %#x: %v", pc, err)
		}
		text = append(text, x86asm.IntelSyntax(inst, uint64(pc), nil))
		pc += inst.Len
		if pc == len(clockGettime) {
			break
		}
	}
	all := strings.Join(text, "\n")
	for _, want := range []string{"lfence", "rdtsc", "mul qword ptr [r10+0x10]", "div rcx", "syscall", "pause"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if got := binary.LittleEndian.Uint64(clockGettime[2:]); got != SystemBase+ClockOffset {
		t.Errorf("the code reads the clock at %#x", got)
	}
	if elfHash("LINUX_2.6") != 0x3ae75f6 {
		t.Errorf("hash of LINUX_2.6 is %#x", elfHash("LINUX_2.6"))
	}
}

func TestSystemTables(t *testing.T) {
	system := make([]byte, SystemSize(3))
	FillSystem(system)
	FillTask(system, 2)
	for v := range Vectors {
		lo, hi := binary.LittleEndian.Uint64(system[IDTOffset+16*v:]), binary.LittleEndian.Uint64(system[IDTOffset+16*v+8:])
		addr := lo&0xffff | lo>>48<<16 | hi<<32
		stub := system[addr-SystemBase:]
		if stub[0] != 0xe6 || stub[1] != PortException+byte(v) {
			t.Errorf("gate %d leads to % x", v, stub[:3])
		}
		if dpl := lo >> 45 & 3; (dpl == 3) != (v == VectorBreakpoint || v == VectorOverflow) {
			t.Errorf("gate %d has privilege level %d", v, dpl)
		}
	}
	if stub := system[StubSyscall-SystemBase:]; stub[0] != 0xe6 || stub[1] != PortSyscall {
		t.Errorf("SYSCALL enters at % x", stub[:4])
	}
	tss := system[TaskOffset+2*PageSize:]
	bitmap := tss[binary.LittleEndian.Uint16(tss[102:]):]
	limit := TSSLimit - int(binary.LittleEndian.Uint16(tss[102:]))
	for port := range 0x10000 {
		// The CPU reads two bytes, and denies what lies beyond the limit (Intel SDM vol. 1 §19.5.2).
		allowed := port/8+1 <= limit && bitmap[port/8]&(1<<(port%8)) == 0
		if allowed != (port == PortSyscall) {
			t.Errorf("port %#x allowed: %v", port, allowed)
		}
	}
	if rsp0 := binary.LittleEndian.Uint64(tss[4:]); rsp0 != SystemBase+TaskOffset+3*PageSize || rsp0%16 != 0 {
		t.Errorf("exception stack at %#x", rsp0)
	}
}

func TestSafeFlags(t *testing.T) {
	for _, f := range []uint64{0, ^uint64(0), 3 << 12 /* IOPL */, 1 << 17 /* VM */} {
		got := SafeFlags(f)
		if got&(3<<12|1<<14|1<<16|1<<17|1<<19|1<<20) != 0 || got&FlagIF == 0 || got&FlagFixed == 0 {
			t.Errorf("SafeFlags(%#x) = %#x", f, got)
		}
	}
}
