package jail

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// judge runs a filter on one call. The bpf package's machine loads big-endian words, the kernel native ones.
func judge(t testing.TB, vm *bpf.VM, archCode, nr uint32, args ...uint64) uint32 {
	t.Helper()
	var data [64]byte
	be := binary.BigEndian
	be.PutUint32(data[dataNr:], nr)
	be.PutUint32(data[dataArch:], archCode)
	for i, a := range args {
		be.PutUint32(data[dataArgs+8*i:], uint32(a))
		be.PutUint32(data[dataArgs+8*i+4:], uint32(a>>32))
	}
	v, err := vm.Run(data[:])
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func machine(t testing.TB, cfg Config) *bpf.VM {
	t.Helper()
	p, err := newPolicy(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := p.assemble()
	if err != nil {
		t.Fatal(err)
	}
	insts, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("the filter does not disassemble")
	}
	vm, err := bpf.NewVM(insts)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// An argument must never be taken for a number: every small value of every argument, for every call.
func TestFilterArguments(t *testing.T) {
	cfg := Config{Ioctls: []uint32{0xae80, 0x5401}, Numbers: []uint32{unix.SYS_PWRITEV}}
	vm := machine(t, cfg)
	allowed, err := numbers(runtimeCalls)
	if err != nil {
		t.Fatal(err)
	}
	soft, err := numbers(refused)
	if err != nil {
		t.Fatal(err)
	}
	allowed = append(allowed, unix.SYS_PWRITEV)
	values := []uint64{0x5401, 0xae80, 0x1_0000_0000, 0x1_0000_ae80, ^uint64(0), threadFlags, threadFlags | unix.CLONE_SETTLS, threadFlags | unix.CLONE_NEWUSER,
		prSetVMA, uint64(os.Getpid())}
	for v := range uint64(480) {
		values = append(values, v)
	}
	for nr := range uint32(480) {
		for _, v := range values {
			got := judge(t, vm, unix.AUDIT_ARCH_X86_64, nr, v, v, v)
			want := verdictKill
			switch nr {
			case unix.SYS_IOCTL:
				if v == 0x5401 || v == 0xae80 {
					want = verdictAllow
				}
			case unix.SYS_MMAP, unix.SYS_MPROTECT:
				if v&unix.PROT_EXEC == 0 {
					want = verdictAllow
				}
			case unix.SYS_CLONE:
				if v == threadFlags || v == threadFlags|unix.CLONE_SETTLS {
					want = verdictAllow
				}
			case unix.SYS_PRCTL:
				if v == prSetVMA {
					want = verdictAllow
				}
			case unix.SYS_TGKILL:
				if v == uint64(os.Getpid()) {
					want = verdictAllow
				}
			default:
				if slices.Contains(allowed, nr) {
					want = verdictAllow
				} else if slices.Contains(soft, nr) {
					want = int(verdictRefuse)
				}
			}
			if got != uint32(want) {
				t.Fatalf("call %d with argument %#x: %#x, want %#x", nr, v, got, want)
			}
		}
	}
}

func TestFilterForeign(t *testing.T) {
	vm := machine(t, Config{})
	for _, a := range []uint32{unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, 0} {
		if v := judge(t, vm, a, unix.SYS_READ); v != verdictKill {
			t.Errorf("architecture %#x: %#x", a, v)
		}
	}
	for _, nr := range []uint32{x32Bit | unix.SYS_READ, 0xffffffff, 0x80000000} {
		if v := judge(t, vm, unix.AUDIT_ARCH_X86_64, nr); v != verdictKill {
			t.Errorf("call %#x: %#x", nr, v)
		}
	}
	vm = machine(t, Config{Log: true})
	if v := judge(t, vm, unix.AUDIT_ARCH_X86_64, unix.SYS_OPENAT); v != verdictLog {
		t.Errorf("openat under Log: %#x", v)
	}
}

// Sockets are made of the named families alone; the upper half of the argument is not forgotten.
func TestFilterDomains(t *testing.T) {
	vm := machine(t, Config{Syscalls: []string{"connect"}, Domains: []int{unix.AF_INET}})
	for domain, want := range map[uint64]uint32{
		unix.AF_INET: verdictAllow, unix.AF_UNIX: verdictRefuse, unix.AF_NETLINK: verdictRefuse, unix.AF_PACKET: verdictRefuse, unix.AF_INET6: verdictRefuse,
		unix.AF_INET | 1<<32: verdictRefuse, 0: verdictRefuse,
	} {
		if v := judge(t, vm, unix.AUDIT_ARCH_X86_64, unix.SYS_SOCKET, domain); v != want {
			t.Errorf("domain %#x: %#x, want %#x", domain, v, want)
		}
	}
	if v := judge(t, vm, unix.AUDIT_ARCH_X86_64, unix.SYS_BIND, unix.AF_INET); v != verdictKill {
		t.Errorf("bind: %#x", v)
	}
}

func TestFilterNames(t *testing.T) {
	if _, err := newPolicy(&Config{Syscalls: []string{"no_such_call"}}); err == nil {
		t.Error("an unknown name was accepted")
	}
	p, err := newPolicy(&Config{Syscalls: []string{"mmap", "ioctl", "tgkill"}, Numbers: []uint32{unix.SYS_CLONE, unix.SYS_OPENAT}})
	if err != nil {
		t.Fatal(err)
	}
	for _, nr := range []uint32{unix.SYS_MMAP, unix.SYS_IOCTL, unix.SYS_CLONE} {
		if slices.Contains(p.allowed, nr) {
			t.Errorf("naming call %d lifted its rule", nr)
		}
	}
	if !slices.Contains(p.allowed, unix.SYS_TGKILL) || slices.Contains(p.refused, unix.SYS_OPENAT) {
		t.Error("tgkill or openat was not allowed though named")
	}
}

// Where yielding costs a period, it fails and harms nothing.
func TestFilterNoYield(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want uint32
	}{
		{Config{}, verdictAllow},
		{Config{NoYield: true}, verdictRefuse},
		{Config{NoYield: true, Syscalls: []string{"sched_yield"}, Numbers: []uint32{unix.SYS_SCHED_YIELD}}, verdictRefuse},
		{Config{NoYield: true, Log: true}, verdictAllow},
	} {
		if v := judge(t, machine(t, c.cfg), unix.AUDIT_ARCH_X86_64, unix.SYS_SCHED_YIELD); v != c.want {
			t.Errorf("%+v: %#x, want %#x", c.cfg, v, c.want)
		}
	}
}
