package guest

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"github.com/grailos/grail/hv/abi"
)

// Status is a driver's status page, by which hv watches it. It is safe for concurrent use.
type Status struct {
	page                  []byte
	beat, requests, bytes *atomic.Uint64
}

// OpenStatus maps the driver's status page. Errors: ErrOutside; a VM that is no driver has none.
func OpenStatus() (*Status, error) {
	caps, err := Caps()
	if err != nil {
		return nil, err
	}
	c, ok := find(caps, abi.CapStatus, "")
	if !ok {
		return nil, errors.New("guest: no status page: this VM is not a driver")
	}
	page, err := MapGrant(c.FD, 0, abi.StatusSize, true)
	if err != nil {
		return nil, err
	}
	return NewStatus(page), nil
}

// NewStatus returns the status kept in page, whose abi.StatusSize bytes are page-aligned.
func NewStatus(page []byte) *Status {
	_ = page[abi.StatusSize-1]
	// Safe: the page is longer than every offset and page-aligned, hence so are the fields; the slice keeps
	// it alive.
	field := func(off int) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&page[off])) }
	return &Status{
		page: page, beat: field(abi.StatusBeat), requests: field(abi.StatusRequests), bytes: field(abi.StatusBytes),
	}
}

// Beat says that a worker has gone one round.
func (s *Status) Beat() { s.beat.Add(1) }

// Count adds completed requests and moved bytes.
func (s *Status) Count(requests, bytes uint64) {
	s.requests.Add(requests)
	s.bytes.Add(bytes)
}
