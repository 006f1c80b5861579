package vfs

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// kind says where a node's contents come from.
type kind uint8

const (
	kindDir     kind = iota
	kindTmp          // a regular file in /tmp
	kindHost         // a range of a host descriptor: an archive member, or the program
	kindSymlink      // target
	kindDevice       // object made by device
	kindFDs          // /proc/self/fd
	kindMagic        // an entry of /proc/self/fd, or /proc/self/exe: stands for something already open
)

// node is a file of the guest's tree. The tree's lock guards the links between nodes (entries, parent, name,
// links); mu guards a regular file's contents.
type node struct {
	kind   kind
	tmp    bool // in /tmp: may be changed
	ino    uint64
	mode   atomic.Uint32 // permission bits
	mtime  atomic.Int64  // Unix ns
	atime  atomic.Int64  // Unix ns; reads do not move it
	owner  atomic.Uint64 // user, and group in the upper half
	links  int
	parent *node // of a directory
	name   string
	dead   bool // a directory that was removed

	entries map[string]*node
	target  string
	device  func() object // kindDevice
	fd      int           // kindMagic: a guest descriptor, or -1: the node real
	real    *node

	mu     sync.RWMutex
	bytes  atomic.Int64 // size
	host   int          // kindHost
	start  int64        // kindHost: where it begins in host
	blocks map[int64]*blockRun
	opens  atomic.Int32
}

func (n *node) isDir() bool     { return n.kind == kindDir || n.kind == kindFDs }
func (n *node) isRegular() bool { return n.kind == kindTmp || n.kind == kindHost }
func (n *node) size() int64     { return n.bytes.Load() }
func (n *node) touch()          { n.mtime.Store(time.Now().UnixNano()) }

// born sets both times.
func (n *node) born(ns int64) { n.mtime.Store(ns); n.atime.Store(ns) }

func (n *node) format() uint32 {
	switch n.kind {
	case kindDir, kindFDs:
		return unix.S_IFDIR
	case kindSymlink, kindMagic:
		return unix.S_IFLNK
	case kindDevice:
		return unix.S_IFCHR
	}
	return unix.S_IFREG
}

// dirType is the node's type in a directory entry.
func (n *node) dirType() byte { return byte(n.format() >> 12) }

// stat fills st; the tree's lock is held for reading.
func (n *node) stat(st *stat) {
	st.mode = n.format() | n.mode.Load()&0o7777
	st.ino = n.ino
	st.size = n.size()
	st.mtime, st.atime = n.mtime.Load(), n.atime.Load()
	st.uid, st.gid = uint32(n.owner.Load()), uint32(n.owner.Load()>>32)
	st.links = uint64(max(n.links, 0))
	st.dev = devRoot
	switch n.kind {
	case kindSymlink:
		st.size = int64(len(n.target))
	case kindDevice:
		o := n.device()
		o.stat(st)
	case kindTmp:
		n.mu.RLock()
		for _, r := range n.blocks {
			st.blocks += uint64(r.used) * (blockSize / 512)
		}
		n.mu.RUnlock()
	case kindHost:
		st.blocks = uint64(st.size+511) / 512
	}
	if n.tmp {
		st.dev = devTmp
	}
}

// Device numbers that stat shows.
const (
	devRoot = 0x10
	devTmp  = 0x11
)
