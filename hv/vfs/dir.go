package vfs

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

func (t *Table) listFDs() []dirent {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var list []dirent
	for fd := range t.slots {
		if t.slots[fd].f != nil {
			list = append(list, dirent{strconv.Itoa(fd), 1<<40 + uint64(fd), unix.DT_LNK})
		}
	}
	return list
}

// sysGetdents serves getdents64 and, with old set, getdents. A listing is taken at position 0 and kept until the next
// rewind, so that a directory may be emptied while it is read.
func (t *Table) sysGetdents(c *Call, fd, addr, n uint64, old bool) (uint64, unix.Errno) {
	f, e := t.get(fd)
	if e != 0 {
		return 0, e
	}
	defer f.put()
	o, ok := f.obj.(*openNode)
	if !f.readable() {
		return 0, unix.EBADF
	}
	if !ok || !o.n.isDir() {
		return 0, unix.ENOTDIR
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pos == 0 || o.list == nil {
		list, e := o.listing()
		if e == 0 {
			e = o.keep(list)
		}
		if e != 0 {
			return 0, e
		}
	}
	out := c.bounceBuf()
	out = out[:min(uint64(uint32(n)), uint64(len(out)))]
	used, pos := 0, f.pos
	for ; pos < int64(len(o.list)); pos++ {
		d := &o.list[pos]
		size := (19 + len(d.name) + 1 + 7) &^ 7
		if old {
			size = (18 + len(d.name) + 2 + 7) &^ 7
		}
		if used+size > len(out) {
			break
		}
		b := out[used : used+size]
		clear(b)
		binary.LittleEndian.PutUint64(b, d.ino)
		binary.LittleEndian.PutUint64(b[8:], uint64(pos+1))
		binary.LittleEndian.PutUint16(b[16:], uint16(size))
		if old {
			copy(b[18:], d.name)
			b[size-1] = d.typ
		} else {
			b[18] = d.typ
			copy(b[19:], d.name)
		}
		used += size
	}
	if used == 0 && pos < int64(len(o.list)) {
		return 0, unix.EINVAL
	}
	if e := c.copyOut(addr, out[:used]); e != 0 {
		return 0, e
	}
	f.pos = pos
	return uint64(used), 0
}
