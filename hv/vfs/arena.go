package vfs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// blockSize is the unit of /tmp's memory in bytes: a host page.
const blockSize = 4096

// arena is the bounded memory of /tmp: anonymous pages outside the Go heap, which cost nothing until touched and
// go back to the host when freed. Block 0 is never given out. Free blocks are all zero.
type arena struct {
	mu    sync.Mutex
	mem   []byte
	limit uint64 // bytes, blocks and charges together
	used  uint64
	next  uint32 // first block never used
	free  []uint32
}

// alloc returns a zeroed block.
func (a *arena) alloc() (uint32, unix.Errno) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used+blockSize > a.limit {
		return 0, unix.ENOSPC
	}
	if a.mem == nil {
		mem, err := unix.Mmap(-1, 0, int(a.limit/blockSize+1)*blockSize, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return 0, unix.ENOSPC
		}
		a.mem, a.next = mem, 1
	}
	a.used += blockSize
	if n := len(a.free); n > 0 {
		b := a.free[n-1]
		a.free = a.free[:n-1]
		return b, 0
	}
	b := a.next
	a.next++
	return b, 0
}

func (a *arena) block(b uint32) []byte {
	return a.mem[int(b)*blockSize : int(b+1)*blockSize : int(b+1)*blockSize]
}

// release frees blocks; it sorts out runs so that the host gets pages back in few calls.
func (a *arena) release(blocks []uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := 0; i < len(blocks); {
		j := i + 1
		for j < len(blocks) && blocks[j] == blocks[j-1]+1 {
			j++
		}
		run := a.mem[int(blocks[i])*blockSize : int(blocks[j-1]+1)*blockSize]
		if unix.Madvise(run, unix.MADV_DONTNEED) != nil {
			clear(run)
		}
		i = j
	}
	a.free = append(a.free, blocks...)
	a.used -= uint64(len(blocks)) * blockSize
}

// charge counts n bytes of the host's own memory (nodes, names) against the limit.
func (a *arena) charge(n uint64) unix.Errno {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used+n > a.limit {
		return unix.ENOSPC
	}
	a.used += n
	return 0
}

func (a *arena) refund(n uint64) {
	a.mu.Lock()
	a.used -= n
	a.mu.Unlock()
}

// room returns the blocks that are left and how many there are in all.
func (a *arena) room() (free, total uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return (a.limit - a.used) / blockSize, a.limit / blockSize
}

func (a *arena) close() {
	if a.mem != nil {
		unix.Munmap(a.mem)
		a.mem = nil
	}
}
