package ring

// maxLook bounds the descriptors that Look reads.
const maxLook = 256

// Look returns the buffers of the chain that begins at head in the descriptor table at an address: those that the device reads, and those that it writes.
// read fills a slice from an address of the driver's memory, or returns false. It is for those who only look: the memory may be anybody's, and may be
// changing, and what breaks a rule ends the chain.
func Look(read func(addr uint64, b []byte) bool, table uint64, size, head uint16) (readable, writable []Segment) {
	n, i, indirect := uint32(size), uint32(head), false
	for range maxLook {
		var b [descLen]byte
		if i >= n || !read(table+uint64(i)*descLen, b[:]) {
			return readable, writable
		}
		d := loadDesc(b[:], 0)
		switch {
		case d.flags&descIndirect != 0 && indirect:
			return readable, writable
		case d.flags&descIndirect != 0:
			table, n, i, indirect = d.addr, d.len/descLen, 0, true
			continue
		case d.flags&descWrite != 0:
			writable = append(writable, Segment{Addr: d.addr, Len: d.len})
		default:
			readable = append(readable, Segment{Addr: d.addr, Len: d.len})
		}
		if d.flags&descNext == 0 {
			return readable, writable
		}
		i = uint32(d.next)
	}
	return readable, writable
}
