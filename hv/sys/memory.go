package sys

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/mm"
)

// protOf normalises Linux's protection bits: on this architecture, what can be touched can be read.
func protOf(v uint64) (mm.Prot, error) {
	if v&^(unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC) != 0 {
		return 0, unix.EINVAL
	}
	p := mm.Prot(v)
	if p != 0 {
		p |= mm.ProtRead
	}
	return p, nil
}

func (t *thread) mprotect(a [6]uint64) (uint64, error) {
	prot, err := protOf(a[2])
	if err != nil {
		return 0, err
	}
	if a[1] == 0 {
		return 0, nil
	}
	return 0, t.g.space.Protect(a[0], a[1], prot)
}

func (t *thread) mmap(a [6]uint64) (uint64, error) {
	addr, length, flags, off := a[0], a[1], int(a[3]), a[5]
	prot, err := protOf(a[2])
	if err != nil {
		return 0, err
	}
	fixed := mm.Hint
	switch {
	case flags&unix.MAP_FIXED_NOREPLACE != 0:
		fixed = mm.Exclusive
	case flags&unix.MAP_FIXED != 0:
		fixed = mm.Replace
	}
	s := t.g.space
	if flags&unix.MAP_ANONYMOUS != 0 {
		// Shared or private is the same to a program that cannot fork.
		if t := flags & unix.MAP_TYPE; t != unix.MAP_PRIVATE && t != unix.MAP_SHARED {
			return 0, unix.EINVAL
		}
		return s.MapAnon(addr, length, prot, fixed)
	}
	m, errno := t.g.cfg.Table.Map(int32(a[4]), off, length, int(a[2]), flags)
	if errno != 0 {
		return 0, errno
	}
	defer m.Release()
	if m.FD < 0 {
		return t.mapFile(addr, length, prot, fixed, io.NewSectionReader(m.Source, int64(m.Offset), int64(length)))
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.FD, &st); err != nil {
		return 0, err
	}
	limit := mm.ProtRead
	if m.Writable {
		limit |= mm.ProtWrite
	}
	src := mm.Source{FD: m.FD, Size: uint64(st.Size), Key: m.Object, Shared: true, Max: limit}
	if m.Kind == abi.CapDevice {
		// A memory slot of its own for each window: the host keeps tables for all of a slot.
		src.Offset, src.Size, src.Key = int64(m.Offset), length, 0
		return s.MapHost(addr, length, prot, fixed, src, 0)
	}
	return s.MapHost(addr, length, prot, fixed, src, m.Offset)
}

// mapFile makes a private copy of a file's contents: what a private mapping is until it is written to, at the
// price of the memory.
func (t *thread) mapFile(addr, length uint64, prot mm.Prot, fixed mm.Fixed, src io.Reader) (uint64, error) {
	s := t.g.space
	if length > s.Size() {
		return 0, unix.ENOMEM
	}
	addr, err := s.MapAnon(addr, length, mm.ProtRead|mm.ProtWrite, fixed)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for at := uint64(0); at < length; {
		n, err := io.ReadFull(src, buf[:min(uint64(len(buf)), length-at)])
		if n > 0 {
			if err := s.CopyOut(addr+at, buf[:n]); err != nil {
				return 0, err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return 0, unix.EIO
		}
		at += uint64(n)
	}
	if prot == mm.ProtRead|mm.ProtWrite {
		return addr, nil
	}
	return addr, s.Protect(addr, length, prot)
}

func (t *thread) madvise(a [6]uint64) (uint64, error) {
	switch a[2] {
	case unix.MADV_DONTNEED, unix.MADV_FREE:
		if a[1] == 0 {
			return 0, nil
		}
		return 0, t.g.space.Discard(a[0], a[1])
	case unix.MADV_COLD, unix.MADV_PAGEOUT, unix.MADV_NORMAL:
		if a[1] == 0 {
			return 0, nil
		}
		return 0, t.g.space.Expendable(a[0], a[1], a[2] != unix.MADV_NORMAL)
	case unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_WILLNEED, unix.MADV_HUGEPAGE,
		unix.MADV_NOHUGEPAGE, unix.MADV_DONTDUMP, unix.MADV_DODUMP:
		return 0, nil
	}
	return 0, unix.EINVAL // MADV_COLLAPSE and others: the guest has another way
}

func (t *thread) mremap(a [6]uint64) (uint64, error) {
	if a[3]&^uint64(unix.MREMAP_MAYMOVE) != 0 {
		return 0, unix.EINVAL
	}
	return t.g.space.Remap(a[0], a[1], a[2], a[3]&unix.MREMAP_MAYMOVE != 0)
}

// mincore answers that all pages are in core, which is as good as true: there is no paging.
func (t *thread) mincore(a [6]uint64) (uint64, error) {
	if a[0]&4095 != 0 {
		return 0, unix.EINVAL
	}
	if !t.g.space.Mapped(a[0], a[1]) {
		return 0, unix.ENOMEM
	}
	ones := make([]byte, min((a[1]+4095)/4096, 1<<20))
	for i := range ones {
		ones[i] = 1
	}
	return 0, t.g.space.CopyOut(a[2], ones)
}
