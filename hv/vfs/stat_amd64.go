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
	le.PutUint32(b[28:], st.uid)
	le.PutUint32(b[32:], st.gid)
	for i, t := range [3]int64{st.atime, st.mtime, st.mtime} { // access, modification, change
		sec, ns := split(t)
		le.PutUint64(b[72+16*i:], uint64(sec))
		le.PutUint64(b[80+16*i:], uint64(ns))
	}
	return b
}
