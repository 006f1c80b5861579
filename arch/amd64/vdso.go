package amd64

import "encoding/binary"

// VDSO returns the image of a vDSO page to be placed at VDSOOffset: an ELF shared object whose
// __vdso_clock_gettime@LINUX_2.6 answers CLOCK_REALTIME and CLOCK_MONOTONIC (and their coarse forms) from the
// TSC and the Clock parameters without leaving user mode, and makes the system call for every other clock.
func VDSO() []byte {
	const (
		ehdr, phdr = 64, 56
		dynOff     = ehdr + 2*phdr
		symOff     = dynOff + 9*16
		hashOff    = symOff + 2*24
		versymOff  = hashOff + 5*4 + 4
		verdefOff  = versymOff + 8
		strOff     = verdefOff + 2*(20+8)
		codeOff    = 1024
	)
	const strings = "\x00__vdso_clock_gettime\x00LINUX_2.6\x00linux-vdso.so.1\x00"
	const strClock, strVersion, strSoname = 1, 22, 32

	b := make([]byte, PageSize)
	le := binary.LittleEndian
	u16 := func(off int, v uint16) { le.PutUint16(b[off:], v) }
	u32 := func(off int, v uint32) { le.PutUint32(b[off:], v) }
	u64 := func(off int, v uint64) { le.PutUint64(b[off:], v) }

	// ELF header: 64-bit, little-endian, ET_DYN, EM_X86_64, two program headers.
	copy(b, "\x7fELF\x02\x01\x01")
	u16(16, 3)
	u16(18, 62)
	u32(20, 1)
	u64(32, ehdr)
	u16(52, ehdr)
	u16(54, phdr)
	u16(56, 2)
	program := func(off int, typ, flags uint32, start, size uint64) {
		u32(off, typ)
		u32(off+4, flags)
		u64(off+8, start)
		u64(off+16, start)
		u64(off+24, start)
		u64(off+32, size)
		u64(off+40, size)
		u64(off+48, 8)
	}
	program(ehdr, 1, 5, 0, PageSize)
	program(ehdr+phdr, 2, 4, dynOff, 9*16)

	const (
		dtHash, dtStrtab, dtSymtab, dtStrsz, dtSyment, dtSoname = 4, 5, 6, 10, 11, 14
		dtVersym, dtVerdef, dtVerdefnum                         = 0x6ffffff0, 0x6ffffffc, 0x6ffffffd
	)
	for i, d := range [][2]uint64{
		{dtHash, hashOff}, {dtStrtab, strOff}, {dtSymtab, symOff}, {dtStrsz, uint64(len(strings))},
		{dtSoname, strSoname}, {dtVersym, versymOff}, {dtVerdef, verdefOff}, {dtVerdefnum, 2},
	} {
		u64(dynOff+16*i, d[0])
		u64(dynOff+16*i+8, d[1])
	}

	// Symbol 1: a global function in section 1.
	u32(symOff+24, strClock)
	b[symOff+24+4] = 1<<4 | 2
	u16(symOff+24+6, 1)
	u64(symOff+24+8, codeOff)
	u64(symOff+24+16, uint64(len(clockGettime)))

	// Hash table: one bucket that leads to symbol 1.
	for i, v := range []uint32{1, 2, 1, 0, 0} {
		u32(hashOff+4*i, v)
	}
	u16(versymOff+2, 2)
	version := func(off int, flags, index uint16, hash, name, next uint32) {
		u16(off, 1)
		u16(off+2, flags)
		u16(off+4, index)
		u16(off+6, 1)
		u32(off+8, hash)
		u32(off+12, 20)
		u32(off+16, next)
		u32(off+20, name)
	}
	version(verdefOff, 1, 1, elfHash("linux-vdso.so.1"), strSoname, 28)
	version(verdefOff+28, 0, 2, elfHash("LINUX_2.6"), strVersion, 0)
	copy(b[strOff:], strings)
	copy(b[codeOff:], clockGettime)
	return b
}

// elfHash is the System V ABI's hash function for symbol names.
func elfHash(name string) uint32 {
	var h uint32
	for i := range len(name) {
		h = h<<4 + uint32(name[i])
		h = h&0x0fffffff ^ h&0xf0000000>>24
	}
	return h
}

// clockGettime is the machine code of __vdso_clock_gettime(edi = clock, rsi = timespec). R10 is the address of
// the Clock (SystemBase + ClockOffset), R9 that of the base to add. It is position-independent but for R10. A
// sequence number that is odd, or that changes while the parameters are read, means a retry.
var clockGettime = []byte{
	0x49, 0xba, 0x00, 0x20, 0x00, 0xf0, 0xff, 0x7f, 0x00, 0x00, // movabs r10,0x7ffff0002000
	0x4d, 0x8d, 0x4a, 0x18, // lea r9,[r10+0x18]
	0x83, 0xff, 0x01, // cmp edi,0x1
	0x74, 0x12, // je 0x25
	0x83, 0xff, 0x06, // cmp edi,0x6
	0x74, 0x0d, // je 0x25
	0x4d, 0x8d, 0x4a, 0x20, // lea r9,[r10+0x20]
	0x85, 0xff, // test edi,edi
	0x74, 0x05, // je 0x25
	0x83, 0xff, 0x05, // cmp edi,0x5
	0x75, 0x48, // jne 0x6d
	0x4d, 0x8b, 0x02, // mov r8,QWORD PTR [r10]
	0x41, 0xf6, 0xc0, 0x01, // test r8b,0x1
	0x75, 0x3b, // jne 0x69
	0x0f, 0xae, 0xe8, // lfence
	0x0f, 0x31, // rdtsc
	0x48, 0xc1, 0xe2, 0x20, // shl rdx,0x20
	0x48, 0x09, 0xd0, // or rax,rdx
	0x31, 0xc9, // xor ecx,ecx
	0x49, 0x2b, 0x42, 0x08, // sub rax,QWORD PTR [r10+0x8]
	0x48, 0x0f, 0x42, 0xc1, // cmovb rax,rcx
	0x49, 0xf7, 0x62, 0x10, // mul QWORD PTR [r10+0x10]
	0x48, 0x0f, 0xac, 0xd0, 0x20, // shrd rax,rdx,0x20
	0x49, 0x03, 0x01, // add rax,QWORD PTR [r9]
	0x4d, 0x3b, 0x02, // cmp r8,QWORD PTR [r10]
	0x75, 0x14, // jne 0x69
	0x31, 0xd2, // xor edx,edx
	0xb9, 0x00, 0xca, 0x9a, 0x3b, // mov ecx,0x3b9aca00
	0x48, 0xf7, 0xf1, // div rcx
	0x48, 0x89, 0x06, // mov QWORD PTR [rsi],rax
	0x48, 0x89, 0x56, 0x08, // mov QWORD PTR [rsi+0x8],rdx
	0x31, 0xc0, // xor eax,eax
	0xc3,       // ret
	0xf3, 0x90, // pause
	0xeb, 0xb8, // jmp 0x25
	0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax,0xe4
	0x0f, 0x05, // syscall
	0xc3, // ret
}
