package program

import (
	"fmt"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// MaxRegions bounds the regions of an attachment.
const MaxRegions = 64

// Mapping is the memory of one attachment. The zero Mapping is empty.
type Mapping struct {
	Rings []Ring // the attachment's queues, for a driver that is told to spoil them

	areas [][]byte
}

// Unmap unmaps all of it.
func (m *Mapping) Unmap() {
	for _, b := range m.areas {
		if err := guest.UnmapGrant(b); err != nil {
			fmt.Println("unmap:", err)
		}
	}
	m.areas, m.Rings = nil, nil
}

// Add maps one piece.
func (m *Mapping) Add(fd int32, offset, size uint64) ([]byte, error) {
	return m.add(fd, offset, size, true)
}

func (m *Mapping) add(fd int32, offset, size uint64, write bool) ([]byte, error) {
	b, err := guest.MapGrant(fd, offset, size, write)
	if err == nil {
		m.areas = append(m.areas, b)
	}
	return b, err
}

// AddRegions maps the regions of an attachment. After an error the caller unmaps.
func (m *Mapping) AddRegions(a *abi.Attach) (*ring.Memory, error) {
	if len(a.Regions) == 0 || len(a.Regions) > MaxRegions {
		return nil, fmt.Errorf("%d regions, the limit is %d", len(a.Regions), MaxRegions)
	}
	var regions []ring.Region
	for _, r := range a.Regions {
		b, err := m.add(r.FD, r.Offset, r.Size, !r.ReadOnly)
		if err != nil {
			return nil, err
		}
		regions = append(regions, ring.Region{Base: r.Base, Mem: b})
	}
	return ring.NewMemory(regions...)
}
