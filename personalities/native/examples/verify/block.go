package main

import (
	"encoding/binary"
	"fmt"
)

// blockSize is the unit of everything, in bytes.
const blockSize = 4096

const blockMagic = 0x5946_4952_4556_4c47 // "GLVERIFY", little-endian

// fill makes the content of a block as operation op of the run with this seed writes it: a header, and noise
// that depends on all three numbers.
func fill(p []byte, seed, block, op uint64) {
	le := binary.LittleEndian
	le.PutUint64(p, blockMagic)
	le.PutUint64(p[8:], seed)
	le.PutUint64(p[16:], block)
	le.PutUint64(p[24:], op)
	x := seed ^ block<<32 ^ op
	for i := 32; i < blockSize; i += 8 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		le.PutUint64(p[i:], z^z>>31)
	}
}

// opOf returns which operation wrote p, or an error when p is no whole block of this run and place.
func opOf(p []byte, seed, block uint64) (uint64, error) {
	le := binary.LittleEndian
	if le.Uint64(p) != blockMagic || le.Uint64(p[8:]) != seed || le.Uint64(p[16:]) != block {
		return 0, fmt.Errorf("block %d holds something else: magic %#x, seed %d, block %d", block, le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]))
	}
	op := le.Uint64(p[24:])
	var want [blockSize]byte
	fill(want[:], seed, block, op)
	for i := range want {
		if p[i] != want[i] {
			return 0, fmt.Errorf("block %d, written by operation %d, differs at byte %d", block, op, i)
		}
	}
	return op, nil
}
