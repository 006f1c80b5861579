package amd64

// RDTSC returns the host's time-stamp counter, read after all earlier instructions are done (Intel SDM vol. 2
// RDTSC).
func RDTSC() uint64

func cpuid(leaf uint32) (ax, bx, cx, dx uint32)

// HasVirtualization reports whether this CPU has VMX or SVM (Intel SDM vol. 2 CPUID leaf 1, AMD APM vol. 3 leaf
// 8000_0001h). A /dev/kvm without either is a software KVM.
func HasVirtualization() bool {
	const vmx, svm = 1 << 5, 1 << 2
	_, _, c, _ := cpuid(1)
	if c&vmx != 0 {
		return true
	}
	if top, _, _, _ := cpuid(0x80000000); top < 0x80000001 {
		return false
	}
	_, _, c, _ = cpuid(0x80000001)
	return c&svm != 0
}
