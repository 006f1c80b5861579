package vfs

import "golang.org/x/sys/unix"

// A /tmp file's contents: runs of up to runBlocks blocks by number, so that a sparse file costs what was written.
const (
	runBlocks = 256
	runBytes  = runBlocks * blockSize
	runCharge = 1280           // host memory of a blockRun and its map entry, bytes
	maxFile   = int64(1) << 40 // largest file, bytes
)

type blockRun struct {
	used  int
	block [runBlocks]uint32 // 0: a hole
}

// readTmp copies file contents at off to u.
func (n *node) readTmp(a *arena, u *uio, off int64) (uint64, unix.Errno) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var done uint64
	size := n.size()
	for u.left > 0 && off < size {
		k := min(blockSize-off%blockSize, size-off, int64(min(u.left, blockSize)))
		src := zeroBlock[:k]
		if r := n.blocks[off/runBytes]; r != nil {
			if b := r.block[off%runBytes/blockSize]; b != 0 {
				src = a.block(b)[off%blockSize:][:k]
			}
		}
		put, e := u.put(src)
		done += put
		off += int64(put)
		if e != 0 {
			if done > 0 {
				return done, 0
			}
			return 0, e
		}
	}
	return done, 0
}

var zeroBlock [bounceSize]byte

// writeTmp copies u to the file at off, or to its end when off is appendAt.
func (n *node) writeTmp(a *arena, u *uio, off int64) (uint64, unix.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if off == appendAt {
		off = n.size()
	}
	if u.left == 0 {
		return 0, 0
	}
	if off >= maxFile {
		return 0, unix.EFBIG
	}
	var done uint64
	for u.left > 0 && off < maxFile {
		dst, e := n.blockAt(a, off)
		if e == 0 {
			k := min(uint64(len(dst)), u.left)
			e = u.get(dst[:k])
			if e == 0 {
				done += k
				off += int64(k)
			}
		}
		if e != 0 {
			if done == 0 {
				return 0, e
			}
			break
		}
	}
	if off > n.size() {
		n.bytes.Store(off)
	}
	n.touch()
	return done, 0
}

// blockAt returns the rest of the block that holds off, allocating it. mu is held.
func (n *node) blockAt(a *arena, off int64) ([]byte, unix.Errno) {
	r := n.blocks[off/runBytes]
	if r == nil {
		if e := a.charge(runCharge); e != 0 {
			return nil, e
		}
		r = new(blockRun)
		if n.blocks == nil {
			n.blocks = make(map[int64]*blockRun)
		}
		n.blocks[off/runBytes] = r
	}
	p := &r.block[off%runBytes/blockSize]
	if *p == 0 {
		b, e := a.alloc()
		if e != 0 {
			if r.used == 0 {
				delete(n.blocks, off/runBytes)
				a.refund(runCharge)
			}
			return nil, e
		}
		*p = b
		r.used++
	}
	return a.block(*p)[off%blockSize:], 0
}

// resize sets the file's size; bytes beyond the old end read as zero.
func (n *node) resize(a *arena, size int64) unix.Errno {
	if size > maxFile {
		return unix.EFBIG
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if size < n.size() {
		n.punch(a, size, maxFile)
	}
	n.bytes.Store(size)
	n.touch()
	return 0
}

// punch makes [from, to) read as zeroes and frees its whole blocks. mu is held.
func (n *node) punch(a *arena, from, to int64) {
	var freed []uint32
	for i, r := range n.blocks {
		base := i * runBytes
		if base >= to || base+runBytes <= from {
			continue
		}
		for j := range r.block {
			lo := base + int64(j)*blockSize
			hi := lo + blockSize
			if r.block[j] == 0 || lo >= to || hi <= from {
				continue
			}
			if lo >= from && hi <= to {
				freed = append(freed, r.block[j])
				r.block[j] = 0
				r.used--
				continue
			}
			b := a.block(r.block[j])
			clear(b[max(from, lo)-lo : min(to, hi)-lo])
		}
		if r.used == 0 {
			delete(n.blocks, i)
			a.refund(runCharge)
		}
	}
	if len(freed) > 0 {
		a.release(freed)
	}
}

// allocate is fallocate(2) with the modes that a memory file needs.
func (n *node) allocate(a *arena, mode uint32, off, length int64) unix.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	end := off + length
	if end > maxFile {
		return unix.EFBIG
	}
	switch mode {
	case 0, unix.FALLOC_FL_KEEP_SIZE:
		if e := n.reserve(a, off-off%blockSize, end); e != 0 {
			return e
		}
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		n.punch(a, off, end)
	default:
		return unix.EOPNOTSUPP
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 && end > n.size() {
		n.bytes.Store(end)
	}
	n.touch()
	return 0
}

// free returns all blocks of a file that nobody can reach any more.
func (n *node) free(a *arena) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.punch(a, 0, maxFile)
	n.bytes.Store(0)
}

// reserve allocates every hole in [from, to), or nothing when there is no room. mu is held.
func (n *node) reserve(a *arena, from, to int64) unix.Errno {
	holes := (to - from + blockSize - 1) / blockSize
	for i, r := range n.blocks {
		for j, b := range r.block {
			if at := i*runBytes + int64(j)*blockSize; b != 0 && at >= from && at < to {
				holes--
			}
		}
	}
	if free, _ := a.room(); uint64(holes) > free {
		return unix.ENOSPC
	}
	for p := from; p < to; p += blockSize {
		if _, e := n.blockAt(a, p); e != 0 {
			return e // someone else took the room meanwhile
		}
	}
	return 0
}
