package vfs

import "encoding/binary"

// statSize is the size of struct stat on amd64 (arch/x86/include/uapi/asm/stat.h).
const statSize = 144

// wire fills b with a struct stat.
func (st *stat) wire(b []byte) []byte {
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b, st.dev)
	le.PutUint64(b[8:], st.ino)
	le.PutUint64(b[16:], st.links)
	le.PutUint32(b[24:], st.mode)
	le.PutUint64(b[40:], st.rdev)
	le.PutUint64(b[48:], uint64(st.size))
	le.PutUint64(b[56:], blockSize)
	le.PutUint64(b[64:], st.blocks)
	sec, ns := split(st.mtime)
	for _, at := range []int{72, 88, 104} {
		le.PutUint64(b[at:], uint64(sec))
		le.PutUint64(b[at+8:], uint64(ns))
	}
	return b
}
