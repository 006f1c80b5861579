//go:build linux && amd64

package process

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// verdict interprets the program on one system call. The interpreter of x/net/bpf reads big-endian words, as from a packet.
func verdict(t testing.TB, prog []bpf.RawInstruction, arch uint32, nr uint64, args [6]uint64) uint32 {
	t.Helper()
	insns, ok := bpf.Disassemble(prog)
	if !ok {
		t.Fatal("program does not disassemble")
	}
	vm, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(nr))
	data = binary.BigEndian.AppendUint32(data, arch)
	data = append(data, make([]byte, 8)...)
	for _, a := range args {
		data = binary.BigEndian.AppendUint32(data, uint32(a))
		data = binary.BigEndian.AppendUint32(data, uint32(a>>32))
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func TestFilter(t *testing.T) {
	const self = 1
	prog, err := filter(DefaultNative(), self)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(prog))
	const allow, forward, enosys, trap = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_USER_NOTIF, retENOS, unix.SECCOMP_RET_TRAP
	for _, test := range []struct {
		what string
		nr   uint64
		args [6]uint64
		want uint32
	}{
		{"futex", unix.SYS_FUTEX, [6]uint64{}, allow},
		{"exit_group", unix.SYS_EXIT_GROUP, [6]uint64{0x100}, allow},
		{"exit_group of one that failed", unix.SYS_EXIT_GROUP, [6]uint64{2}, forward},
		{"restart_syscall", unix.SYS_RESTART_SYSCALL, [6]uint64{}, allow},
		{"write", unix.SYS_WRITE, [6]uint64{1}, forward},
		{"grail", 0x4700, [6]uint64{}, forward},
		{"execve", unix.SYS_EXECVE, [6]uint64{}, forward},
		{"clone", unix.SYS_CLONE, [6]uint64{cloneThread}, forward},
		{"clone3", unix.SYS_CLONE3, [6]uint64{}, enosys},
		{"x32", unix.SYS_GETPID | x32Bit, [6]uint64{}, enosys},
		{"-1", 0xffffffff, [6]uint64{}, enosys},
		{"kill self", unix.SYS_KILL, [6]uint64{self, 15}, allow},
		{"kill self, high garbage", unix.SYS_KILL, [6]uint64{self | 1<<40, 15}, allow}, // a pid_t
		{"kill self 9", unix.SYS_KILL, [6]uint64{self, 9}, forward},
		{"kill all", unix.SYS_KILL, [6]uint64{^uint64(0), 15}, forward},
		{"kill group", unix.SYS_KILL, [6]uint64{0, 15}, forward},
		{"kill other", unix.SYS_KILL, [6]uint64{2, 15}, forward},
		{"tgkill self", unix.SYS_TGKILL, [6]uint64{self, 7, 23}, allow},
		{"tgkill self 9", unix.SYS_TGKILL, [6]uint64{self, 7, 9}, forward},
		{"private anonymous", unix.SYS_MMAP, [6]uint64{0, 4096, 3, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED}, allow},
		{"shared anonymous", unix.SYS_MMAP, [6]uint64{0, 4096, 3, unix.MAP_SHARED | unix.MAP_ANONYMOUS}, forward},
		{"shared file", unix.SYS_MMAP, [6]uint64{0, 4096, 3, unix.MAP_SHARED, 7}, allow},
		{"huge", unix.SYS_MMAP, [6]uint64{0, 4096, 3, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_HUGETLB}, forward},
		{"locked file", unix.SYS_MMAP, [6]uint64{0, 4096, 3, unix.MAP_SHARED | unix.MAP_LOCKED, 7}, forward},
		{"DONTNEED", unix.SYS_MADVISE, [6]uint64{0, 4096, unix.MADV_DONTNEED}, allow},
		{"MERGEABLE", unix.SYS_MADVISE, [6]uint64{0, 4096, unix.MADV_MERGEABLE}, forward},
		{"REMOVE", unix.SYS_MADVISE, [6]uint64{0, 4096, unix.MADV_REMOVE}, forward},
		{"FS", unix.SYS_ARCH_PRCTL, [6]uint64{archSetFS}, allow},
		{"CPUID faulting", unix.SYS_ARCH_PRCTL, [6]uint64{0x1012}, forward},
	} {
		if got := verdict(t, prog, unix.AUDIT_ARCH_X86_64, test.nr, test.args); got != test.want {
			t.Errorf("%s: %#x, want %#x", test.what, got, test.want)
		}
		if got := verdict(t, prog, unix.AUDIT_ARCH_I386, test.nr, test.args); got != trap {
			t.Errorf("%s by i386: %#x, want %#x", test.what, got, uint32(trap))
		}
	}
	for _, bad := range []Rule{
		{Nr: unix.SYS_EXECVE}, {Nr: unix.SYS_PTRACE}, {Nr: unix.SYS_READ, When: []Cond{{Arg: 6}}}, {Nr: unix.SYS_READ, When: []Cond{{Arg: -1}}},
		{Nr: unix.SYS_READ, When: []Cond{{Arg: 0, Mask: 1, Value: 1 << 32}}},
		{Nr: unix.SYS_READ, When: []Cond{{Arg: 0, Mask: ^uint64(0), Not: true}}},
	} {
		if _, err := filter([]Rule{bad}, self); err == nil {
			t.Errorf("rule %+v was taken", bad)
		}
	}
	var many []Rule
	for range 200 {
		many = append(many, Rule{Nr: unix.SYS_READ, When: []Cond{{Arg: 0, Mask: 1, Value: 1}}})
	}
	if _, err := filter(many, self); err == nil {
		t.Error("200 alternatives for one call were taken")
	}
}

// FuzzFilter holds the compiled filter against native, which the tracer uses.
func FuzzFilter(f *testing.F) {
	for nr := range uint64(16) {
		f.Add(nr, uint64(1), uint64(9), uint64(9), uint64(0x22), uint64(nr))
	}
	f.Add(uint64(unix.SYS_MMAP), uint64(0), uint64(4096), uint64(3), uint64(0x22), uint64(3))
	f.Add(uint64(unix.SYS_TGKILL), uint64(1), uint64(1), uint64(9), uint64(0), uint64(4))
	f.Add(uint64(unix.SYS_MADVISE), uint64(0), uint64(0), uint64(12), uint64(0), uint64(5))
	f.Fuzz(func(t *testing.T, nr, a0, a1, a2, a3, seed uint64) {
		nr &= 0x3fffffff
		args := [6]uint64{a0, a1, a2, a3, seed, a0 ^ a3}
		random := rand.New(rand.NewPCG(seed, nr))
		rules := DefaultNative()
		for range random.IntN(8) { // rules of our own, likely about this very call
			r := Rule{Nr: uint32(nr) + uint32(random.IntN(2))}
			for range random.IntN(4) {
				mask := random.Uint64() >> random.IntN(64)
				c := Cond{Arg: random.IntN(6), Mask: mask, Not: random.IntN(3) == 0, Self: random.IntN(5) == 0}
				if random.IntN(2) == 0 {
					c.Value = args[c.Arg] & mask
				} else {
					c.Value = random.Uint64() & mask
				}
				r.When = append(r.When, c)
			}
			rules = append(rules, r)
		}
		const self = 77
		prog, err := filter(rules, self)
		if err != nil {
			return // a rule it refuses
		}
		want := uint32(unix.SECCOMP_RET_USER_NOTIF)
		if native(rules, self, nr, &args) {
			want = unix.SECCOMP_RET_ALLOW
		}
		if nr == unix.SYS_CLONE3 {
			want = retENOS
		}
		if got := verdict(t, prog, unix.AUDIT_ARCH_X86_64, nr, args); got != want {
			t.Errorf("call %d %x: filter says %#x, native %#x", nr, args, got, want)
		}
	})
}
