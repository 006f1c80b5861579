package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Formats: Linux's Documentation/filesystems/ext4 (globals: super block, block group descriptors; dynamic:
// index nodes, the contents of inode.i_block). All numbers are little-endian.
const (
	superOffset = 1024
	superMagic  = 0xef53
	extentMagic = 0xf30a

	incompat64Bit = 0x80
	flagExtents   = 0x80000
	flagInline    = 0x10000000

	maxDepth      = 5
	maxWritten    = 32768 // an extent longer than this is unwritten, and reads as zeroes
	maxExtents    = 1 << 20
	extentBytes   = 12
	inodeBlockOff = 40 // of i_block, 60 bytes
)

// inodeTable finds inodes and their extents.
type inodeTable struct {
	disk           io.ReaderAt
	block          int64 // bytes
	perGroup       uint32
	inodeSize      int64
	groups, inodes uint32
	descriptors    int64 // where the group descriptors start, bytes
	descSize       int64
}

// readInodeTable takes what is needed from the super block.
func readInodeTable(disk io.ReaderAt) (*inodeTable, error) {
	b := make([]byte, 1024)
	if _, err := disk.ReadAt(b, superOffset); err != nil {
		return nil, fmt.Errorf("super block: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[56:]) != superMagic {
		return nil, errors.New("super block: wrong magic")
	}
	shift := le.Uint32(b[24:])
	t := &inodeTable{
		disk: disk, perGroup: le.Uint32(b[40:]), inodeSize: int64(le.Uint16(b[88:])), inodes: le.Uint32(b), descSize: 32,
	}
	if shift > 6 || t.perGroup == 0 || t.inodeSize < 128 {
		return nil, errors.New("super block: numbers out of range")
	}
	t.block = 1024 << shift
	t.descriptors = int64(le.Uint32(b[20:])+1) * t.block
	if le.Uint32(b[96:])&incompat64Bit != 0 {
		if t.descSize = int64(le.Uint16(b[254:])); t.descSize < 64 {
			return nil, errors.New("super block: group descriptors are too short")
		}
	}
	return t, nil
}

// inode returns the first 128 bytes of inode n.
func (t *inodeTable) inode(n uint32) ([]byte, error) {
	if n == 0 || n > t.inodes {
		return nil, fmt.Errorf("inode %d of %d", n, t.inodes)
	}
	group, index := int64((n-1)/t.perGroup), int64((n-1)%t.perGroup)
	d := make([]byte, t.descSize)
	if _, err := t.disk.ReadAt(d, t.descriptors+group*t.descSize); err != nil {
		return nil, fmt.Errorf("group descriptor %d: %w", group, err)
	}
	table := uint64(binary.LittleEndian.Uint32(d[8:]))
	if t.descSize >= 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[40:])) << 32
	}
	b := make([]byte, 128)
	if _, err := t.disk.ReadAt(b, int64(table)*t.block+index*t.inodeSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	return b, nil
}

// extent is a run of blocks of a file. What no extent covers, and what an unwritten one covers, is zero.
type extent struct {
	first, blocks uint32
	start         uint64 // on the disk, in blocks
	written       bool
}

// extents returns the extents of inode n, in order.
func (t *inodeTable) extents(n uint32) ([]extent, error) {
	b, err := t.inode(n)
	if err != nil {
		return nil, err
	}
	flags := binary.LittleEndian.Uint32(b[32:])
	if flags&flagExtents == 0 || flags&flagInline != 0 {
		return nil, fmt.Errorf("inode %d: only files with extents are supported, flags %#x", n, flags)
	}
	e, err := t.node(nil, b[inodeBlockOff:inodeBlockOff+60], maxDepth+1)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	for i := 1; i < len(e); i++ {
		if uint64(e[i-1].first)+uint64(e[i-1].blocks) > uint64(e[i].first) {
			return nil, fmt.Errorf("inode %d: extents overlap", n)
		}
	}
	return e, nil
}

// node appends the extents beneath the tree node in b, whose depth is less than limit.
func (t *inodeTable) node(e []extent, b []byte, limit uint16) ([]extent, error) {
	le := binary.LittleEndian
	entries, depth := int(le.Uint16(b[2:])), le.Uint16(b[6:])
	if le.Uint16(b) != extentMagic || depth >= limit || (entries+1)*extentBytes > len(b) {
		return nil, errors.New("extent tree is damaged")
	}
	for i := range entries {
		r := b[(i+1)*extentBytes:][:extentBytes]
		if depth > 0 {
			child := make([]byte, t.block)
			at := uint64(le.Uint32(r[4:])) | uint64(le.Uint16(r[8:]))<<32
			if _, err := t.disk.ReadAt(child, int64(at)*t.block); err != nil {
				return nil, fmt.Errorf("extent tree: %w", err)
			}
			var err error
			if e, err = t.node(e, child, depth); err != nil {
				return nil, err
			}
			continue
		}
		x := extent{
			first: le.Uint32(r), blocks: uint32(le.Uint16(r[4:])), written: true,
			start: uint64(le.Uint32(r[8:])) | uint64(le.Uint16(r[6:]))<<32,
		}
		if x.blocks > maxWritten {
			x.blocks, x.written = x.blocks-maxWritten, false
		}
		if e = append(e, x); len(e) > maxExtents {
			return nil, errors.New("extent tree is too large")
		}
	}
	return e, nil
}

// content is a file's content. It is safe for concurrent use.
type content struct {
	disk    io.ReaderAt
	block   int64
	extents []extent
	size    int64
}

// ReadAt implements io.ReaderAt, for reads within the file.
func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > c.size || int64(len(p)) > c.size-off {
		return 0, fmt.Errorf("read of %d bytes at %d of a file of %d", len(p), off, c.size)
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		i, found := slices.BinarySearchFunc(c.extents, at/c.block, func(e extent, b int64) int {
			return cmp.Compare(int64(e.first), b)
		})
		if !found {
			i-- // the last extent that starts before
		}
		limit, from := c.size, int64(-1) // up to where this piece goes, and where it lies on the disk
		if i+1 < len(c.extents) {
			limit = min(limit, int64(c.extents[i+1].first)*c.block)
		}
		if i >= 0 {
			e := c.extents[i]
			if end := (int64(e.first) + int64(e.blocks)) * c.block; at < end {
				limit = min(limit, end)
				if e.written {
					from = int64(e.start)*c.block + at - int64(e.first)*c.block
				}
			}
		}
		piece := p[n:min(int64(len(p)), int64(n)+limit-at)]
		if from < 0 {
			clear(piece)
		} else if k, err := c.disk.ReadAt(piece, from); k < len(piece) {
			return n + k, err
		}
		n += len(piece)
	}
	return len(p), nil
}
