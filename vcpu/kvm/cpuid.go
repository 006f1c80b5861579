package kvm

import (
	"encoding/binary"
	"fmt"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// XCR0 states that guests use: x87, SSE, AVX and AVX-512. AMX stays off: it needs a permission that guests cannot
// ask for. AVX-512 cannot stay off: where software KVM runs the guest's user mode, XCR0 and CPUID are the host's,
// whatever KVM is told, so that guests use it and its state has to be kept (Intel SDM vol. 1 §13.1 XSAVE-Supported
// Features and State-Component Bitmaps).
const (
	xStateX87    = 1 << 0
	xStateSSE    = 1 << 1
	xStateAVX    = 1 << 2
	xStateAVX512 = 7 << 5 // opmask, ZMM_Hi256, Hi16_ZMM
	xStates      = xStateX87 | xStateSSE | xStateAVX | xStateAVX512
)

// AVX-512 features in CPUID leaf 7 (Intel SDM vol. 2 CPUID, Table 3-8).
const (
	leaf7EbxAVX512 = 1<<16 | 1<<17 | 1<<21 | 1<<26 | 1<<27 | 1<<28 | 1<<30 | 1<<31
	leaf7EcxAVX512 = 1<<1 | 1<<6 | 1<<11 | 1<<12 | 1<<14
	leaf7EdxAVX512 = 1<<2 | 1<<3 | 1<<8 | 1<<23
	leaf71AVX512   = 1 << 5
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
	c.Entries = c.Entries[:c.Nent]
	m.chooseStates(c.Entries)
	wide := m.xcr0&xStateAVX512 != 0
	b := make([]byte, 8, 8+40*len(c.Entries))
	binary.LittleEndian.PutUint32(b, c.Nent)
	for _, e := range c.Entries {
		switch {
		case e.Function == 1:
			e.Ecx |= 1 << 31 // hypervisor present
			e.Ecx &^= 1 << 3 // MONITOR
		case e.Function == 7 && e.Index == 0:
			e.Ebx &^= 1                                  // FSGSBASE
			e.Ecx &^= 1<<3 | 1<<4 | 1<<7 | 1<<16 | 1<<31 // PKU, CET, LA57
			e.Edx &^= 1<<20 | 1<<22 | 1<<24 | 1<<25      // CET, AMX
			if !wide {
				e.Ebx, e.Ecx, e.Edx = e.Ebx&^leaf7EbxAVX512, e.Ecx&^leaf7EcxAVX512, e.Edx&^leaf7EdxAVX512
			}
		case e.Function == 7:
			e.Eax &^= 1<<18 | 1<<21 // LKGS, AMX
			e.Edx = 0
			if !wide {
				e.Eax &^= leaf71AVX512
			}
		case e.Function == 0xd && e.Index == 0:
			e.Eax, e.Edx = uint32(m.xcr0), 0
			e.Ecx = uint32(m.fpuSize)
			e.Ebx = e.Ecx
		case e.Function == 0xd && e.Index == 1:
			e.Eax &^= 1<<3 | 1<<4 // XSAVES, XFD
			e.Ebx, e.Ecx, e.Edx = 0, 0, 0
		case e.Function == 0xd && (e.Index > 63 || m.xcr0>>e.Index&1 == 0):
			e.Eax, e.Ebx, e.Ecx, e.Edx = 0, 0, 0, 0
		}
		for _, v := range []uint32{e.Function, e.Index, e.Flags, e.Eax, e.Ebx, e.Ecx, e.Edx, 0, 0, 0} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	m.cpuid = b
	return nil
}

// chooseStates sets the states that guests have, and the size of their XSAVE area, from what KVM supports.
func (m *Machine) chooseStates(entries []gokvm.CPUIDEntry2) {
	m.xcr0, m.fpuSize = 0, legacySize
	ends := map[uint32]int{} // by component
	for _, e := range entries {
		switch {
		case e.Function == 0xd && e.Index == 0:
			m.xcr0 = uint64(e.Eax) & xStates
		case e.Function == 0xd && e.Index > 1 && e.Index < 63:
			ends[e.Index] = int(min(e.Ebx, xsaveSize) + min(e.Eax, xsaveSize))
		}
	}
	if m.xcr0&xStateAVX512 != xStateAVX512 {
		m.xcr0 &^= xStateAVX512
	}
	for i, end := range ends {
		if m.xcr0>>i&1 != 0 && end > MaxFPUSize {
			m.xcr0 &^= xStateAVX512
		}
	}
	for i, end := range ends {
		if m.xcr0>>i&1 != 0 {
			m.fpuSize = max(m.fpuSize, end)
		}
	}
}
