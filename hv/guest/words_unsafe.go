package guest

import (
	"sync/atomic"
	"unsafe"

	"github.com/grailos/grail/hv/abi"
)

// words is the words of a grant's rings part; see abi.WordEpoch.
type words struct{ mem []byte }

// at returns a word that the host or this program's other threads may use at the same time. off is a multiple of 4.
func (w words) at(off uint64) *uint32 {
	// Safe: the mapping begins at a page, stays for as long as the program runs, and off is bounds-checked with the word's end.
	return (*uint32)(unsafe.Pointer(&w.mem[off : off+4][0]))
}

// epoch returns the present epoch.
func (w words) epoch() uint32 { return atomic.LoadUint32(w.at(abi.WordEpoch)) }

// acknowledge says that queue i was started in an epoch.
func (w words) acknowledge(i int, epoch uint32) { atomic.StoreUint32(w.at(abi.WordAck(i)), epoch) }

// complain says what the driver did wrong in queue i; 0 takes it back.
func (w words) complain(i int, what uint32) { atomic.StoreUint32(w.at(abi.WordComplaint(i)), what) }
