package inject

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Piece is a run of a guest's memory, [Start, Start+Size).
type Piece struct{ Start, Size uint64 }

// StackBytes is how much of a stack, from the stack pointer on, counts as in use.
const StackBytes = 4096

// Within returns what of pieces lies in [start, start+size).
func Within(pieces []Piece, start, size uint64) (in []Piece) {
	end := start + size
	if end < start {
		return nil
	}
	for _, p := range pieces {
		if lo, hi := max(p.Start, start), min(p.Start+p.Size, end); lo < hi {
			in = append(in, Piece{lo, hi - lo})
		}
	}
	return in
}

// errNothing reports that there is no memory to change.
var errNothing = errors.New("inject: there is no such memory")

// FlipBits inverts n random bits of pieces by flip, which returns the byte as it was, and adds what it did to hit. What says what the memory is.
func FlipBits(random *rand.Rand, n int, pieces []Piece, flip func(addr uint64, mask byte) (byte, error), what string, hit *Hit) error {
	var total uint64
	for _, p := range pieces {
		total += p.Size
	}
	if total == 0 {
		return errNothing
	}
	var done []string
	for range n {
		at, bit := random.Uint64N(total), random.IntN(8)
		for _, p := range pieces {
			if at >= p.Size {
				at -= p.Size
				continue
			}
			addr := p.Start + at
			old, err := flip(addr, 1<<bit)
			if err != nil {
				return fmt.Errorf("byte %#x: %w", addr, err)
			}
			done = append(done, fmt.Sprintf("flipped bit %d of byte %#x, which was %#02x", bit, addr, old))
			if what == Code {
				hit.Code = append(hit.Code, addr)
			}
			break
		}
	}
	hit.What = strings.Join(done, ", ") + " (" + what + ")"
	return nil
}

// Register is a register of a stopped thread.
type Register struct {
	Name  string
	Value *uint64
}

// Bits of rflags that user mode has: CF PF AF ZF SF DF OF.
var flagBits = []int{0, 2, 4, 6, 7, 10, 11}

// addressBits is how many bits of the instruction pointer may change: the others would not be an address at all.
const addressBits = 47

// FlipRegisters inverts n random bits of registers and says which.
func FlipRegisters(random *rand.Rand, n int, registers []Register, of string) string {
	var done []string
	for range n {
		r := registers[random.IntN(len(registers))]
		bit := random.IntN(64)
		switch r.Name {
		case "rip":
			bit %= addressBits
		case "rflags":
			bit = flagBits[bit%len(flagBits)]
		}
		done = append(done, fmt.Sprintf("flipped bit %d of %s, which was %#x", bit, r.Name, *r.Value))
		*r.Value ^= 1 << bit
	}
	return strings.Join(done, ", ") + " (" + of + ")"
}
