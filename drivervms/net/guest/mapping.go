package main

import (
	"fmt"
	"slices"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// maxRegions bounds the regions of an attachment.
const maxRegions = 64

// mapping is the memory of one attachment.
type mapping struct{ areas [][]byte }

func (m *mapping) unmap() {
	for _, b := range m.areas {
		if err := guest.UnmapGrant(b); err != nil {
			fmt.Println("net: unmap:", err)
		}
	}
	m.areas = nil
}

// mapClient maps the memory of an attachment. After an error nothing stays mapped. An in-flight log is not needed: the rings say where
// to go on.
func mapClient(id uint64, a *abi.Attach) (mp *mapping, c vswitch.Client, err error) {
	mp = &mapping{}
	defer func() {
		if err != nil {
			mp.unmap()
		}
	}()
	if len(a.Regions) == 0 || len(a.Regions) > maxRegions {
		return mp, c, fmt.Errorf("%d regions, the limit is %d", len(a.Regions), maxRegions)
	}
	var regions []ring.Region
	for _, r := range a.Regions {
		b, err := guest.MapGrant(r.FD, r.Offset, r.Size, true)
		if err != nil {
			return mp, c, err
		}
		mp.areas = append(mp.areas, b)
		regions = append(regions, ring.Region{Base: r.Base, Mem: b})
	}
	mem, err := ring.NewMemory(regions...)
	if err != nil {
		return mp, c, err
	}
	c = vswitch.Client{ID: id, Features: a.Features, Memory: mem}
	queues := slices.SortedFunc(slices.Values(a.Queues), func(x, y abi.Queue) int { return int(x.Index) - int(y.Index) })
	for i, q := range queues {
		if int(q.Index) != i {
			return mp, c, fmt.Errorf("queue %d is missing", i)
		}
		c.Queues = append(c.Queues, vswitch.Queue{
			Queue: ring.Queue{Size: q.Size, Desc: q.Desc, Avail: q.Avail, Used: q.Used},
			Kick:  ring.DoorbellOf(int(q.KickFD)), Call: ring.DoorbellOf(int(q.CallFD)),
		})
	}
	return mp, c, nil
}
