package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// blockSize is the unit of everything, in bytes. Its sectors are what a disk may tear it into.
const (
	blockSize  = 4096
	sectorSize = 512
	sectors    = blockSize / sectorSize
)

const sectorMagic = 0x5946_4952_4556_4c47 // "GLVERIFY", little-endian

// Where what is in a sector; noise follows.
const (
	magicAt = 0
	seedAt  = 8
	placeAt = 16 // the sector's own number
	opAt    = 24
	noiseAt = 32
)

// fill makes the content of a block as operation op of the run with this seed writes it: in each sector a header, and noise that
// depends on all of the header. So a sector by itself tells who wrote it, when, and where to.
func fill(p []byte, seed, block, op uint64) {
	for s := range uint64(sectors) {
		fillSector(p[s*sectorSize:][:sectorSize], seed, block*sectors+s, op)
	}
}

func fillSector(p []byte, seed, place, op uint64) {
	le := binary.LittleEndian
	le.PutUint64(p[magicAt:], sectorMagic)
	le.PutUint64(p[seedAt:], seed)
	le.PutUint64(p[placeAt:], place)
	le.PutUint64(p[opAt:], op)
	x := seed ^ place<<32 ^ op
	for i := noiseAt; i < sectorSize; i += 8 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		le.PutUint64(p[i:], z^z>>31)
	}
}

// A fault is what is wrong with a block, in one word.
type fault string

// The faults.
const (
	lost      fault = "lost"      // it was never written, as far as the disk knows
	stale     fault = "stale"     // it is as an earlier operation wrote it, or an earlier run
	misplaced fault = "misplaced" // it belongs to another place
	torn      fault = "torn"      // its sectors are of several operations
	changed   fault = "changed"   // it is as nobody wrote it
)

// wrong is a block that is not as it must be.
type wrong struct {
	fault fault
	block uint64
	what  string
}

func (w *wrong) Error() string { return fmt.Sprintf("block %d is %s: %s", w.block, w.fault, w.what) }

var zeros [blockSize]byte

// opsOf returns which operation wrote each sector of p. Errors: *wrong, for a block that is not of this run and place.
func opsOf(p []byte, seed, block uint64) (ops [sectors]uint64, err error) {
	le := binary.LittleEndian
	if bytes.Equal(p, zeros[:]) {
		return ops, &wrong{lost, block, "it holds zeros"}
	}
	for i := range uint64(sectors) {
		s := p[i*sectorSize:][:sectorSize]
		place := block*sectors + i
		bad := func(f fault, format string, args ...any) error {
			return &wrong{f, block, fmt.Sprintf("sector %d: ", i) + fmt.Sprintf(format, args...)}
		}
		var want [sectorSize]byte
		fillSector(want[:], le.Uint64(s[seedAt:]), le.Uint64(s[placeAt:]), le.Uint64(s[opAt:]))
		switch {
		case bytes.Equal(s, zeros[:sectorSize]):
			return ops, bad(torn, "it holds zeros, and others do not")
		case le.Uint64(s[magicAt:]) != sectorMagic:
			return ops, bad(changed, "it holds something else, %x…", s[:8])
		case !bytes.Equal(s, want[:]):
			return ops, bad(changed, "%d bytes of it differ from what operation %d wrote to sector %d of the disk",
				differing(s, want[:]), le.Uint64(s[opAt:]), le.Uint64(s[placeAt:]))
		case le.Uint64(s[seedAt:]) != seed:
			return ops, bad(stale, "it is of the run with seed %d", le.Uint64(s[seedAt:]))
		case le.Uint64(s[placeAt:]) != place:
			return ops, bad(misplaced, "operation %d wrote it to sector %d of the disk, not to %d", le.Uint64(s[opAt:]), le.Uint64(s[placeAt:]), place)
		}
		ops[i] = le.Uint64(s[opAt:])
	}
	return ops, nil
}

func differing(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// opOf returns which operation wrote p. Errors: as opsOf; sectors of several operations.
func opOf(p []byte, seed, block uint64) (uint64, error) {
	ops, err := opsOf(p, seed, block)
	if err != nil {
		return 0, err
	}
	for i, op := range ops {
		if op != ops[0] {
			return 0, &wrong{torn, block, fmt.Sprintf("sector 0 is of operation %d, sector %d of %d", ops[0], i, op)}
		}
	}
	return ops[0], nil
}

// check finds out whether a block is as one of the operations left it that may have written it last: after a write that
// failed there are several, and its sectors may be of different ones. 0 among them stands for zeros: nobody wrote it.
func check(p []byte, seed, block uint64, may []uint64) error {
	if bytes.Equal(p, zeros[:]) && slices.Contains(may, 0) {
		return nil
	}
	if len(may) == 1 && may[0] == 0 {
		// A stranger's data may be of this run: say whose.
		if _, err := opOf(p, seed, block); err != nil {
			return err
		}
		return &wrong{changed, block, "nobody wrote it, and it holds a block of this run and place"}
	}
	ops, err := opsOf(p, seed, block)
	if w, ok := err.(*wrong); ok && w.fault == torn && slices.Contains(may, 0) && len(may) > 1 {
		return nil // a first write that failed half way
	}
	if err != nil {
		return err
	}
	alike := !slices.ContainsFunc(ops[:], func(op uint64) bool { return op != ops[0] })
	for i, op := range ops {
		switch {
		case slices.Contains(may, op):
		case !alike:
			return &wrong{torn, block, fmt.Sprintf("sector %d is of operation %d, the block of %v; the sectors are of %v", i, op, may, ops)}
		default:
			return &wrong{stale, block, fmt.Sprintf("it was written by operation %v and reads as of operation %d", may, op)}
		}
	}
	return nil
}
