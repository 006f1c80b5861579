package ringtest

import (
	"errors"
	"math"
	"math/rand/v2"

	"github.com/grailos/grail/ring"
)

// Offence is one way to break the rules of a queue, and the error that the other side must answer it with.
type Offence struct {
	Name string
	Do   func(r *Raw)
	Want error
}

// DriverOffences returns what a hostile driver can do to a fresh queue, both indices at 0, of at least 4
// descriptors. The addresses [data, data+4096) are memory.
func DriverOffences(data uint64) []Offence {
	// offer publishes head 0 after the table has been filled.
	offer := func(ds ...Desc) func(*Raw) {
		return func(r *Raw) {
			for i, d := range ds {
				r.SetDesc(uint16(i), d)
			}
			r.SetAvail(0, 0)
			r.SetAvailIdx(1)
		}
	}
	indirect := func(length uint32, flags uint16, ds ...Desc) func(*Raw) {
		return func(r *Raw) {
			r.SetTable(data, ds...)
			offer(Desc{Addr: data, Len: length, Flags: FlagIndirect | flags, Next: 1})(r)
		}
	}
	ok := Desc{Addr: data, Len: 16}
	return []Offence{
		{"index ahead by more than the queue", func(r *Raw) { r.SetAvailIdx(r.Q.Size + 1) }, ring.ErrPeerIndex},
		{"index behind", func(r *Raw) { r.SetAvailIdx(0xffff) }, ring.ErrPeerIndex},
		{"index half-way round", func(r *Raw) { r.SetAvailIdx(0x8000) }, ring.ErrPeerIndex},
		{"head is the queue size", func(r *Raw) { r.SetAvail(0, r.Q.Size); r.SetAvailIdx(1) }, ring.ErrPeerHead},
		{"head is 65535", func(r *Raw) { r.SetAvail(0, 0xffff); r.SetAvailIdx(1) }, ring.ErrPeerHead},
		{"head offered twice", func(r *Raw) {
			r.SetDesc(0, ok)
			r.SetAvail(0, 0)
			r.SetAvail(1, 0)
			r.SetAvailIdx(2)
		}, ring.ErrPeerHead},
		{"descriptor links to itself", offer(Desc{Addr: data, Len: 1, Flags: FlagNext, Next: 0}), ring.ErrPeerChain},
		{"descriptors link in a loop", offer(Desc{data, 1, FlagNext, 1}, Desc{data, 1, FlagNext, 2}, Desc{data, 1, FlagNext, 1}), ring.ErrPeerChain},
		{"link out of the table", func(r *Raw) { offer(Desc{data, 1, FlagNext, r.Q.Size})(r) }, ring.ErrPeerChain},
		{"link far out of the table", offer(Desc{data, 1, FlagNext, 0xffff}), ring.ErrPeerChain},
		{"readable after writable", offer(Desc{data, 1, FlagNext | FlagWrite, 1}, ok), ring.ErrPeerChain},
		{"empty descriptor", offer(Desc{Addr: data}), ring.ErrPeerChain},
		{"4 GiB in all", offer(Desc{data, 4096, FlagNext, 1}, Desc{data, math.MaxUint32, 0, 0}), ring.ErrPeerChain},
		{"address 0", offer(Desc{Len: 1}), ring.ErrRange},
		{"address before the memory", offer(Desc{Addr: 1, Len: 1}), ring.ErrRange},
		{"address at the end of the address space", offer(Desc{Addr: math.MaxUint64, Len: 1}), ring.ErrRange},
		{"range wraps around", offer(Desc{Addr: math.MaxUint64 - 7, Len: math.MaxUint32}), ring.ErrRange},
		{"range leaves the memory", offer(Desc{Addr: data, Len: math.MaxUint32}), ring.ErrRange},
		{"indirect table of no entry", indirect(0, 0), ring.ErrPeerChain},
		{"indirect table of a fraction", indirect(24, 0, ok), ring.ErrPeerChain},
		{"indirect table too long", indirect(16*(ring.DefaultMaxSegments+1), 0), ring.ErrPeerChain},
		{"indirect table of 4 GiB", indirect(0xfffffff0, 0), ring.ErrPeerChain},
		{"indirect table out of memory", offer(Desc{Addr: 8, Len: 16, Flags: FlagIndirect}), ring.ErrRange},
		{"indirect with a link", indirect(16, FlagNext, ok), ring.ErrPeerChain},
		{"indirect in indirect", indirect(16, 0, Desc{data, 16, FlagIndirect, 0}), ring.ErrPeerChain},
		{"indirect entry links to itself", indirect(32, 0, Desc{data, 1, FlagNext, 0}, ok), ring.ErrPeerChain},
		{"indirect link out of the table", indirect(16, 0, Desc{data, 1, FlagNext, 1}), ring.ErrPeerChain},
		{"indirect entry out of memory", indirect(16, 0, Desc{Addr: 3, Len: 1}), ring.ErrRange},
		{"indirect readable after writable", indirect(32, 0, Desc{data, 1, FlagNext | FlagWrite, 1}, ok), ring.ErrPeerChain},
	}
}

// DeviceOffences returns what a hostile device can do to a queue, both indices from 0, in which the driver has
// just published one request of head 0 with room for 8 bytes.
func DeviceOffences() []Offence {
	complete := func(id, length uint32, idx uint16) func(*Raw) {
		return func(r *Raw) {
			r.SetUsed(0, id, length)
			r.SetUsedIdx(idx)
		}
	}
	return []Offence{
		{"index ahead of what is outstanding", complete(0, 0, 2), ring.ErrPeerIndex},
		{"index behind", complete(0, 0, 0xffff), ring.ErrPeerIndex},
		{"index half-way round", complete(0, 0, 0x8000), ring.ErrPeerIndex},
		{"head not outstanding", complete(1, 0, 1), ring.ErrPeerHead},
		{"head out of range", complete(1<<16-1, 0, 1), ring.ErrPeerHead},
		{"head with high bits", complete(1<<16, 0, 1), ring.ErrPeerHead},
		{"head of 32 bits", complete(math.MaxUint32, 0, 1), ring.ErrPeerHead},
		{"one byte too many", complete(0, 9, 1), ring.ErrPeerLength},
		{"length of 32 bits", complete(0, math.MaxUint32, 1), ring.ErrPeerLength},
	}
}

// IsPeerError reports whether err is one of the errors that a peer may cause.
func IsPeerError(err error) bool {
	for _, e := range []error{ring.ErrPeerIndex, ring.ErrPeerHead, ring.ErrPeerChain, ring.ErrPeerLength, ring.ErrRange, ring.ErrLog} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Scribble changes n random places of mem, biased to small and to extreme values: a peer that has gone mad.
func Scribble(rng *rand.Rand, mem []byte, n int) {
	for range n {
		i := rng.IntN(len(mem))
		switch rng.IntN(4) {
		case 0:
			mem[i] = byte(rng.Uint32())
		case 1:
			mem[i] = byte(rng.IntN(4))
		case 2:
			mem[i] = 0xff
		default:
			mem[i] ^= 1 << rng.IntN(8)
		}
	}
}
