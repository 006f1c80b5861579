package engine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

const (
	// Device is KVM's device node.
	Device = "/dev/kvm"
	// kvmGetAPIVersion is KVM_GET_API_VERSION, _IO(0xAE, 0x00) (KVM api.rst §4.1).
	kvmGetAPIVersion = 0xAE00
	// kvmAPIVersion is the only version there will ever be (KVM api.rst §4.1).
	kvmAPIVersion = 12
)

// KVM opens /dev/kvm and checks that it speaks the KVM interface. The error says what to do about it.
func KVM() (*os.File, error) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, errors.New("this host has no /dev/kvm; load the module kvm_intel or kvm_amd, or enable nested virtualization")
	case errors.Is(err, os.ErrPermission):
		return nil, errors.New("no permission to open /dev/kvm; add yourself to the group that owns it (usually kvm), or run as root")
	case err != nil:
		return nil, err
	}
	v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err == nil && v != kvmAPIVersion {
		err = fmt.Errorf("/dev/kvm has API version %d, not %d; use --engine process", v, kvmAPIVersion)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("/dev/kvm does not answer as KVM does: %w", err)
	}
	return f, nil
}

// Choose returns the engine to use when want was asked for, and an open /dev/kvm if the engine needs it. An empty
// want means the best that works. why explains a choice that was made for the caller.
func Choose(want hv.Engine) (e hv.Engine, kvm *os.File, why string, err error) {
	switch want {
	case hv.EngineProcess:
		return want, nil, "", nil
	case hv.EngineKVM:
		kvm, err := KVM()
		if err != nil {
			return want, nil, "", api.Errorf(api.CannotRun, "engine kvm: %v; or use --engine process", err)
		}
		return want, kvm, "", nil
	case "":
		kvm, err := KVM()
		if err != nil {
			return hv.EngineProcess, nil, "engine process, which isolates less than kvm: " + err.Error(), nil
		}
		return hv.EngineKVM, kvm, "", nil
	}
	return want, nil, "", api.Errorf(api.Invalid, "there is no engine %q; use kvm or process", want)
}
