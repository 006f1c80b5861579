package kvm

import (
	"encoding/binary"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// xcr0 states that guests use: x87, SSE and AVX. AVX-512 and AMX stay off: their state does not fit the
// signal frames and crash reports of the ABI, and switching it would slow every thread.
const (
	xStateX87 = 1 << 0
	xStateSSE = 1 << 1
	xStateAVX = 1 << 2
	xStates   = xStateX87 | xStateSSE | xStateAVX
)

// readCPUID prepares the CPUID table that all vCPUs get: what KVM supports, less the features whose state or
// control-register bits the guest does not have.
func (m *Machine) readCPUID() error {
	var c gokvm.CPUID
	for n := 128; ; n *= 2 {
		c = gokvm.CPUID{Nent: uint32(n), Entries: make([]gokvm.CPUIDEntry2, n)}
		err := gokvm.GetSupportedCPUID(m.kvm, &c)
		if err == nil {
			break
		}
		if n > 4096 {
			return fmt.Errorf("kvm: supported CPUID: %w", err)
		}
	}
	b := make([]byte, 8, 8+40*len(c.Entries))
	binary.LittleEndian.PutUint32(b, c.Nent)
	for _, e := range c.Entries[:c.Nent] {
		switch {
		case e.Function == 1:
			e.Ecx |= 1 << 31 // hypervisor present
			e.Ecx &^= 1 << 3 // MONITOR
		case e.Function == 7 && e.Index == 0:
			e.Ebx &^= 1 | 1<<16 | 1<<17 | 1<<21 | 1<<26 | 1<<27 | 1<<28 | 1<<30 | 1<<31        // FSGSBASE, AVX-512
			e.Ecx &^= 1<<1 | 1<<3 | 1<<4 | 1<<6 | 1<<7 | 1<<11 | 1<<12 | 1<<14 | 1<<16 | 1<<31 // AVX-512, PKU, CET, LA57
			e.Edx &^= 1<<2 | 1<<3 | 1<<8 | 1<<20 | 1<<22 | 1<<23 | 1<<24 | 1<<25               // AVX-512, CET, AMX
		case e.Function == 7:
			e.Eax &^= 1<<5 | 1<<18 | 1<<21 // AVX-512 BF16, LKGS, AMX
			e.Edx = 0
		case e.Function == 0xd && e.Index == 0:
			m.xcr0 = uint64(e.Eax) & xStates
			e.Eax, e.Edx = uint32(m.xcr0), 0
			e.Ecx = 512 + 64
			if m.xcr0&xStateAVX != 0 {
				e.Ecx += 256
			}
			e.Ebx = e.Ecx
		case e.Function == 0xd && e.Index == 1:
			e.Eax &^= 1<<3 | 1<<4 // XSAVES, XFD
			e.Ebx, e.Ecx, e.Edx = 0, 0, 0
		case e.Function == 0xd && e.Index > 2:
			e.Eax, e.Ebx, e.Ecx, e.Edx = 0, 0, 0, 0
		}
		for _, v := range []uint32{e.Function, e.Index, e.Flags, e.Eax, e.Ebx, e.Ecx, e.Edx, 0, 0, 0} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	m.cpuid = b
	return nil
}
