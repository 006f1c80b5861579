package state

import (
	"fmt"
	"unsafe"
)

// words returns b, which is page-aligned, as words.
func words(b []byte) []uint64 {
	if uintptr(unsafe.Pointer(&b[0]))%8 != 0 {
		panic("state: the region is not aligned")
	}
	// Safe: aligned, and as long as b, which the slice keeps alive where it is Go's.
	return unsafe.Slice((*uint64)(unsafe.Pointer(&b[0])), len(b)/8)
}

// cell returns the words as a T.
func cell[T any](w []uint64) *T {
	n := unsafe.Sizeof(*new(T))
	if n == 0 || n%8 != 0 || uintptr(len(w)) < n/8 {
		panic(fmt.Sprintf("state: a cell of %d bytes in %d words", n, len(w)))
	}
	// Safe: aligned as words are, long enough, and any contents are a T, which holds nothing but words.
	return (*T)(unsafe.Pointer(&w[0]))
}

// wordsOf returns the size of a T in words.
func wordsOf[T any]() int { return int(unsafe.Sizeof(*new(T)) / 8) }
