package vfs

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// Mapping is what mmap of a descriptor has to map. Exactly one of FD and Source is set.
type Mapping struct {
	FD       int    // host descriptor for a shared mapping; -1: none. Valid until Release
	Offset   uint64 // where the mapping starts in FD or Source, bytes
	Writable bool   // a shared mapping may be written; without it mprotect to PROT_WRITE must be refused
	// Source holds the contents of a private mapping, Size bytes from its start. Beyond it reads zeroes.
	// It is a copy-on-write view of a file that may still change until it is read. Valid until Release.
	Source io.ReaderAt
	Size   uint64
	// Object identifies the memory behind FD, for a later revocation; see Installed.
	Object uint64
	Kind   abi.CapKind
	file   *file
}

// maxMapped is the size of the largest device that can be mapped, in bytes: the host's kernel keeps a quarter of a
// percent of it in tables.
const maxMapped = 4 << 30

// Release gives the descriptor or source back. A host mapping made from FD stays.
func (m *Mapping) Release() {
	if m.file != nil {
		m.file.put()
		m.file = nil
	}
}

// Map checks an mmap of length bytes at off of a guest descriptor. prot and flags are Linux's. Errors: those of
// mmap(2): EBADF, EACCES, EINVAL (alignment, length, a grant's end), ENODEV (not mappable, or not this way).
func (t *Table) Map(fd int32, off, length uint64, prot, flags int) (Mapping, unix.Errno) {
	m := Mapping{FD: -1, Offset: off}
	if length == 0 || off%pageSize != 0 {
		return m, unix.EINVAL
	}
	f, e := t.get(uint64(uint32(fd)))
	if e != 0 {
		return m, e
	}
	m.file = f
	if e := m.fill(f, length, prot, flags); e != 0 {
		m.Release()
		return Mapping{FD: -1}, e
	}
	return m, 0
}

func (m *Mapping) fill(f *file, length uint64, prot, flags int) unix.Errno {
	shared := false
	switch flags & unix.MAP_TYPE {
	case unix.MAP_SHARED, unix.MAP_SHARED_VALIDATE:
		shared = true
	case unix.MAP_PRIVATE:
	default:
		return unix.EINVAL
	}
	if !f.readable() {
		return unix.EACCES
	}
	end := m.Offset + length
	if end < length || end > 1<<62 {
		return unix.EOVERFLOW
	}
	switch o := f.obj.(type) {
	case *memory:
		// The rights of a disk or port are about that; its grant holds the client's own rings and buffers.
		writable := o.rights&abi.RightWrite != 0 || o.kind == abi.CapDisk || o.kind == abi.CapNet
		switch {
		case !shared, end > (o.bytes+pageSize-1)&^(pageSize-1):
			return unix.EINVAL
		case prot&unix.PROT_EXEC != 0, prot&unix.PROT_WRITE != 0 && !writable:
			return unix.EACCES
		}
		m.FD, m.Object, m.Kind, m.Writable = o.fd, o.id, o.kind, writable
		return 0
	case *device:
		// To be read only: what a guest writes to a device goes through its calls.
		switch {
		case !shared, end > uint64(o.bytes+pageSize-1)&^(pageSize-1):
			return unix.EINVAL
		case prot&(unix.PROT_EXEC|unix.PROT_WRITE) != 0:
			return unix.EACCES
		case o.bytes > maxMapped, !o.unchanged():
			return unix.ENODEV
		}
		m.FD, m.Object, m.Kind = o.fd, o.id, abi.CapDevice
		return 0
	case *openNode:
		switch {
		case !o.n.isRegular():
			return unix.ENODEV
		case shared && (prot&unix.PROT_WRITE != 0 || o.n.kind != kindHost):
			return unix.ENODEV
		}
		m.Source, m.Size = o, uint64(o.n.size())
		return 0
	case *charDevice:
		if o.label == "zero" && !shared {
			m.Source = zeroes{}
			return 0
		}
	}
	return unix.ENODEV
}

// zeroes is an empty source.
type zeroes struct{}

func (zeroes) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
