package guest

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// ErrOutside reports that the program runs as an ordinary process and not inside a Grail VM, where alone it
// has capabilities.
var ErrOutside = errors.New("not inside a Grail VM: start this program with grailctl run")

// maxCapTable bounds the capability table that Caps is ready to hold, in bytes.
const maxCapTable = 1 << 20

// Caps returns the guest's capability table as it is now. Errors: ErrOutside.
func Caps() ([]abi.Cap, error) {
	b := make([]byte, 64*abi.CapSize)
	for {
		n, err := sysCaps(b)
		if err == syscall.ENOSYS {
			return nil, ErrOutside
		}
		if err != nil {
			return nil, fmt.Errorf("guest: capability table: %w", err)
		}
		if n <= len(b) {
			return abi.ParseCaps(b[:n])
		}
		if n > maxCapTable {
			return nil, fmt.Errorf("guest: capability table of %d bytes is too large", n)
		}
		b = make([]byte, n)
	}
}

// find returns the first capability of the given kind, and of the given name unless that is empty.
func find(caps []abi.Cap, kind abi.CapKind, name string) (abi.Cap, bool) {
	for _, c := range caps {
		if c.Kind == kind && (name == "" || c.Name == name) {
			return c, true
		}
	}
	return abi.Cap{}, false
}

// bells returns the doorbells of one kind that belong to the disk or port of a name, by the number of their queue.
func bells(caps []abi.Cap, kind abi.CapKind, name string) map[int]ring.Doorbell {
	m := map[int]ring.Doorbell{}
	for _, c := range caps {
		if c.Kind == kind && c.Name == name {
			m[int(c.Index)] = ring.DoorbellOf(int(c.FD))
		}
	}
	return m
}
