package sys

import (
	"sync/atomic"
	"unsafe"

	"github.com/grailos/grail/arch/amd64"
)

// clockPage is the Clock that guests read while it is changed.
type clockPage struct{ p *[5]uint64 }

func viewClock(mem []byte) clockPage {
	// Safe: mem is the machine's clock page, page-aligned, mapped for as long as the machine lives.
	return clockPage{(*[5]uint64)(unsafe.Pointer(&mem[:int(unsafe.Sizeof(amd64.Clock{}))][0]))}
}

// store publishes c. The stores are ordered (sync/atomic), so a reader that finds Sequence even and unchanged
// around its loads has seen one consistent set; the vDSO code is the other side.
func (v clockPage) store(c *amd64.Clock) {
	c.Sequence += 2
	atomic.StoreUint64(&v.p[0], c.Sequence-1)
	atomic.StoreUint64(&v.p[1], c.Stamp)
	atomic.StoreUint64(&v.p[2], c.Mult)
	atomic.StoreUint64(&v.p[3], c.Monotonic)
	atomic.StoreUint64(&v.p[4], c.Realtime)
	atomic.StoreUint64(&v.p[0], c.Sequence)
}
