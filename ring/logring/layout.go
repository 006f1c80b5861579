package logring

import (
	"errors"
	"fmt"
)

// The ring's memory: a page of numbers, then the data. Byte p of the stream stands at data[p mod len(data)]. All numbers are little-endian and written
// atomically. The two 16-bit indices stand where a virtqueue has them, behind 16 bits of zeroes, so that whoever watches virtqueues for requests that are
// pending can watch this ring.
const (
	// AvailOffset is where the producer's 16-bit count of writes stands, behind 16 bits of zeroes.
	AvailOffset = 0
	// UsedOffset is where the consumer says up to which write it has read, likewise.
	UsedOffset = 64

	claimOffset = 128  // uint64: the stream up to here is being written
	headOffset  = 136  // uint64: the stream up to here is written
	marksOffset = 144  // uint64: time marks made
	sleepOffset = 192  // uint32: the consumer wants its doorbell rung
	tableOffset = 1024 // time marks: a position and a Unix time in nanoseconds, both uint64

	headerBytes = 4096
	marks       = (headerBytes - tableOffset) / 16
)

// Bounds of a ring's memory, in bytes. Its data, which is a page less, may have any size that is a multiple of a page.
const (
	MinBytes = 2 * headerBytes
	MaxBytes = headerBytes + 64<<20
)

// Errors of the consumer.
var (
	// ErrMemory reports memory that cannot be a ring.
	ErrMemory = errors.New("logring: memory of a wrong size or alignment")
	// ErrPeerPosition reports a producer whose stream went back. It is broken or hostile.
	ErrPeerPosition = errors.New("logring: the producer's position went back")
)

func check(mem []byte) error {
	if len(mem) < MinBytes || len(mem) > MaxBytes || len(mem)%headerBytes != 0 || !aligned(mem) {
		return fmt.Errorf("%w: %d bytes", ErrMemory, len(mem))
	}
	return nil
}
