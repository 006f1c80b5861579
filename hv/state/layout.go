package state

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Bounds of a region's size in bytes; it is a power of two.
const (
	MinSize = 16 << 10
	MaxSize = 4 << 20
)

// MaxRecord bounds a record's data in bytes. A quarter of the region bounds it as well.
const MaxRecord = 16 << 10

// ErrSize reports a region of an impossible size.
var ErrSize = errors.New("state: the region's size is no power of two from 16 KiB to 4 MiB")

// The layout of a region of n bytes: four parts of n/4 bytes each.
const (
	partWords = iota
	partFirst // a checkpoint
	partSecond
	partJournal
	parts
)

// part returns one part of a region.
func part(mem []byte, i int) []byte {
	n := len(mem) / parts
	return mem[i*n : (i+1)*n : (i+1)*n]
}

func checkSize(n int) error {
	if n < MinSize || n > MaxSize || n&(n-1) != 0 {
		return ErrSize
	}
	return nil
}

// A checkpoint begins with a header: checksum of what follows (4 bytes), magic (4), version of the contents (4), length of the items
// (4), generation (8), sequence number of the last record that it includes (8). Its items stand behind that, each with kind (2), length
// (2) and 4 unused bytes before its data.
//
// A record of the journal has a header: checksum of what follows (4), kind (2), length (2), generation of the checkpoint that it
// follows (8), sequence number (8), and its data behind that. Items and records are aligned to 8 bytes.
const (
	checkpointHeader = 32
	itemHeader       = 8
	recordHeader     = 24
	magic            = 0x54534c47 // "GLST"
	maxNumber        = 1 << 62    // of generations and sequences, which never wrap around
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func aligned(n int) int { return (n + 7) &^ 7 }

// checkpoint is a valid checkpoint's contents.
type checkpoint struct {
	version              uint32
	generation, sequence uint64
	items                []byte
}

// parseCheckpoint returns the checkpoint in b, and false when it is not valid.
func parseCheckpoint(b []byte) (c checkpoint, ok bool) {
	le := binary.LittleEndian
	n := uint64(le.Uint32(b[12:]))
	if le.Uint32(b[4:]) != magic || n > uint64(len(b)-checkpointHeader) || checksum(b[4:checkpointHeader+n]) != le.Uint32(b) {
		return c, false
	}
	c = checkpoint{version: le.Uint32(b[8:]), generation: le.Uint64(b[16:]), sequence: le.Uint64(b[24:]),
		items: b[checkpointHeader : checkpointHeader+n]}
	return c, c.generation < maxNumber && c.sequence < maxNumber
}

// each calls f with the items of a checkpoint.
func (c *checkpoint) each(f func(kind uint16, data []byte)) (n int) {
	for b := c.items; len(b) >= itemHeader; n++ {
		size := int(binary.LittleEndian.Uint16(b[2:]))
		if size > len(b)-itemHeader {
			break // a checksum that is right by chance, or a writer gone mad
		}
		f(binary.LittleEndian.Uint16(b), b[itemHeader:itemHeader+size:itemHeader+size])
		b = b[min(itemHeader+aligned(size), len(b)):]
	}
	return n
}

// newest returns the valid checkpoint with the highest generation and its part, or false.
func newest(mem []byte) (c checkpoint, at int, ok bool) {
	for _, i := range []int{partFirst, partSecond} {
		if k, valid := parseCheckpoint(part(mem, i)); valid && (!ok || k.generation > c.generation) {
			c, at, ok = k, i, true
		}
	}
	return c, at, ok
}

// eachRecord calls f with the records in the journal b that follow a checkpoint without a gap. It returns how many there are, and
// where they end.
func eachRecord(b []byte, c *checkpoint, f func(kind uint16, data []byte)) (n int, end int) {
	le := binary.LittleEndian
	for len(b)-end >= recordHeader {
		r := b[end:]
		size := int(le.Uint16(r[6:]))
		if size > len(r)-recordHeader || le.Uint64(r[8:]) != c.generation || le.Uint64(r[16:]) != c.sequence+uint64(n)+1 ||
			checksum(r[4:recordHeader+size]) != le.Uint32(r) {
			break
		}
		f(le.Uint16(r[4:]), r[recordHeader:recordHeader+size:recordHeader+size])
		n++
		end = min(end+recordHeader+aligned(size), len(b))
	}
	return n, end
}
