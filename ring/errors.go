package ring

import "errors"

// Errors that a peer causes. After one of them the queue is dead: every later call returns the same error,
// and the owner tears the ring down. They may come wrapped with the offending numbers; use errors.Is.
var (
	// ErrPeerIndex reports a peer index further ahead of ours than requests can be. The peer is broken or
	// hostile: tear the ring down, do not retry.
	ErrPeerIndex = errors.New("ring: peer index out of range")

	// ErrPeerHead reports a descriptor head that is out of range, offered twice, or completed without being
	// outstanding.
	ErrPeerHead = errors.New("ring: peer named an invalid descriptor head")

	// ErrPeerChain reports a malformed descriptor chain: a loop, a link out of range, a readable descriptor
	// after a writable one, an empty descriptor, a bad indirect table, or more than 4 GiB in all.
	ErrPeerChain = errors.New("ring: peer offered a malformed descriptor chain")

	// ErrPeerLength reports a completion that claims more bytes written than the request had room for.
	ErrPeerLength = errors.New("ring: peer reported an impossible length")

	// ErrRange reports an address range that is not wholly inside one region of the Memory.
	ErrRange = errors.New("ring: address range outside the memory")

	// ErrLog reports an in-flight log that contradicts itself, its queue, or this implementation's version.
	ErrLog = errors.New("ring: in-flight log is corrupt")
)

// Errors that the caller causes.
var (
	// ErrFull reports that the queue has too few free descriptors for the chain. Consume completions, retry.
	ErrFull = errors.New("ring: queue is full")

	// ErrChain reports a chain that this queue can never carry: no segment, an empty segment, more segments
	// than descriptors, or more than 4 GiB.
	ErrChain = errors.New("ring: chain cannot be carried by this queue")

	// ErrConfig reports a queue or memory description that breaks a rule: a size that is no power of two, a
	// misaligned ring, overlapping regions.
	ErrConfig = errors.New("ring: invalid configuration")
)
