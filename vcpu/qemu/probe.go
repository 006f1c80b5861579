package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Verdict is what Probe found.
type Verdict struct {
	Program string // QEMU's path
	Version string // such as "7.2.22"
	Accel   Accel  // KVM or TCG: what Auto stands for
	Why     string // one line for people
}

// ErrNoQEMU reports that QEMU is not installed or does not run.
var ErrNoQEMU = errors.New("qemu: no QEMU")

var versionRE = regexp.MustCompile(`version (\d{1,4}\.\d{1,4}(?:\.\d{1,4})?)`)

// programs are QEMU's names, and the Debian packages that have them.
var programs = map[Arch][2]string{
	AMD64: {"qemu-system-x86_64", "qemu-system-x86"},
	ARM64: {"qemu-system-aarch64", "qemu-system-arm"},
}

// Probe finds QEMU for an architecture ("": the host's), in PATH unless program says where, and how it should run
// guests. Errors: ErrNoQEMU.
func Probe(ctx context.Context, arch Arch, program string) (Verdict, error) {
	if arch == "" {
		arch = hostArch
	}
	names, ok := programs[arch]
	if !ok {
		return Verdict{}, wrong("architecture %q: expected amd64 or arm64", arch)
	}
	if program == "" {
		program = names[0]
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return Verdict{}, fmt.Errorf("%w for %s: %w; install the package %s", ErrNoQEMU, arch, err, names[1])
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Stdout, cmd.WaitDelay = &out, time.Second
	if err := cmd.Run(); err != nil {
		return Verdict{}, fmt.Errorf("%w for %s: %s --version: %w", ErrNoQEMU, arch, path, err)
	}
	m := versionRE.FindSubmatch(out.Bytes())
	if m == nil {
		return Verdict{}, fmt.Errorf("%w for %s: %s does not tell its version", ErrNoQEMU, arch, path)
	}
	v := Verdict{Program: path, Version: string(m[1])}
	v.Accel, v.Why = accelFor(arch)
	return v, nil
}

// accelFor returns the accelerator for guests of arch on this host, and why.
func accelFor(arch Arch) (Accel, string) {
	if arch != hostArch {
		return TCG, fmt.Sprintf("tcg: guests of %s on a host of %s", arch, hostArch)
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, fmt.Sprintf("tcg: %v", err)
	}
	defer f.Close()
	const getAPIVersion = 0xae00 // KVM_GET_API_VERSION, _IO(KVMIO, 0x00)
	if v, err := unix.IoctlRetInt(int(f.Fd()), getAPIVersion); err != nil || v != 12 {
		return TCG, fmt.Sprintf("tcg: /dev/kvm has API version %d, expected 12 (%v)", v, err)
	}
	if !hardware() {
		return TCG, "tcg: /dev/kvm is a software KVM (the CPU has neither VMX nor SVM), which does not run a stock kernel"
	}
	return KVM, "kvm: /dev/kvm, and the CPU has VMX or SVM"
}
