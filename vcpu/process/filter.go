//go:build linux && amd64

package process

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

const (
	x32Bit  = 0x40000000 // __X32_SYSCALL_BIT
	retENOS = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// filter compiles rules into a seccomp program: foreign architectures trap (SIGSYS, so int $0x80 is a
// fault of the guest like any other), x32 and clone3 are ENOSYS, rules are allowed, and all else is
// forwarded to the listener. self is the guest's process id as the guest sees it.
// Errors: a rule that names clone, execve, execveat or an argument that does not exist; a program that the
// kernel would not take.
func filter(rules []Rule, self uint32) ([]bpf.RawInstruction, error) {
	ret := func(v uint32) bpf.Instruction { return bpf.RetConstant{Val: v} }
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.AUDIT_ARCH_X86_64, SkipTrue: 1},
		ret(unix.SECCOMP_RET_TRAP),
		bpf.LoadAbsolute{Off: dataNr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32Bit, SkipFalse: 1},
		ret(retENOS),
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_CLONE3, SkipFalse: 1},
		ret(retENOS),
	}
	byNr := map[uint32][]Rule{}
	var order []uint32
	for _, r := range rules {
		switch r.Nr {
		case unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_EXECVE, unix.SYS_EXECVEAT,
			unix.SYS_SECCOMP, unix.SYS_PTRACE:
			return nil, fmt.Errorf("process: system call %d cannot be native", r.Nr)
		}
		if _, seen := byNr[r.Nr]; !seen {
			order = append(order, r.Nr)
		}
		byNr[r.Nr] = append(byNr[r.Nr], r)
	}
	for _, nr := range order {
		block, err := alternatives(byNr[nr], self)
		if err != nil {
			return nil, err
		}
		if len(block) > 255 {
			return nil, fmt.Errorf("process: too many rules for system call %d", nr)
		}
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: nr, SkipFalse: uint8(len(block))})
		prog = append(prog, block...)
	}
	prog = append(prog, ret(unix.SECCOMP_RET_USER_NOTIF))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("process: filter of %d instructions, the kernel takes %d", len(prog), unix.BPF_MAXINSNS)
	}
	return bpf.Assemble(prog)
}

// alternatives compiles the rules of one number; the program runs off no end of it.
func alternatives(rules []Rule, self uint32) ([]bpf.Instruction, error) {
	var block []bpf.Instruction
	for _, r := range rules {
		var tests []bpf.Instruction // pairs or triples ending in a jump, patched below
		for _, c := range r.When {
			if c.Arg < 0 || c.Arg > 5 {
				return nil, fmt.Errorf("process: rule for system call %d tests argument %d of 6", r.Nr, c.Arg)
			}
			c = c.bind(self)
			if c.Not && (uint32(c.Mask) == 0) == (c.Mask>>32 == 0) {
				return nil, fmt.Errorf("process: inverted rule for system call %d must test one half of the argument", r.Nr)
			}
			for half := range uint32(2) {
				mask, value := uint32(c.Mask>>(32*half)), uint32(c.Value>>(32*half))
				if mask == 0 {
					if value != 0 {
						return nil, fmt.Errorf("process: rule for system call %d can never hold", r.Nr)
					}
					continue
				}
				tests = append(tests, bpf.LoadAbsolute{Off: dataArgs + 8*uint32(c.Arg) + 4*half, Size: 4})
				if mask != 0xffffffff {
					tests = append(tests, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
				}
				cond := bpf.JumpEqual
				if c.Not {
					cond = bpf.JumpNotEqual
				}
				tests = append(tests, bpf.JumpIf{Cond: cond, Val: value})
			}
		}
		for i, t := range tests {
			if j, ok := t.(bpf.JumpIf); ok {
				j.SkipFalse = uint8(len(tests) - i) // past the remaining tests and the allow
				tests[i] = j
			}
		}
		block = append(block, tests...)
		block = append(block, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
		if len(tests) == 0 {
			return block, nil
		}
	}
	return append(block, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF}), nil
}
