package qemu

const hostArch = ARM64

// hostTSC returns 0: QEMU's translator has no steady counter here that it could pass through to amd64 guests.
func hostTSC() uint64 { return 0 }

// hardware reports whether a /dev/kvm of this host can be one of the processor's own: no other is known.
func hardware() bool { return true }
