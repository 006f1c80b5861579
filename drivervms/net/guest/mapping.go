package main

import (
	"fmt"

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

// mapQueues maps the memory of an attachment and returns its queues by index. After an error nothing stays mapped. An in-flight log is
// not needed: the rings say where to go on.
func mapQueues(a *abi.Attach) (mp *mapping, queues map[uint16]vswitch.Queue, err error) {
	mp = &mapping{}
	defer func() {
		if err != nil {
			mp.unmap()
		}
	}()
	if len(a.Regions) == 0 || len(a.Regions) > maxRegions {
		return mp, nil, fmt.Errorf("%d regions, the limit is %d", len(a.Regions), maxRegions)
	}
	var regions []ring.Region
	for _, r := range a.Regions {
		b, err := guest.MapGrant(r.FD, r.Offset, r.Size, true)
		if err != nil {
			return mp, nil, err
		}
		mp.areas = append(mp.areas, b)
		regions = append(regions, ring.Region{Base: r.Base, Mem: b})
	}
	mem, err := ring.NewMemory(regions...)
	if err != nil {
		return mp, nil, err
	}
	queues = map[uint16]vswitch.Queue{}
	for _, q := range a.Queues {
		if _, ok := queues[q.Index]; ok || q.Index >= 2*vswitch.MaxPairs {
			return mp, nil, fmt.Errorf("queue %d is there twice, or is none of %d", q.Index, 2*vswitch.MaxPairs)
		}
		queues[q.Index] = vswitch.Queue{
			Queue:  ring.Queue{Size: q.Size, Desc: q.Desc, Avail: q.Avail, Used: q.Used},
			Memory: mem,
			Kick:   ring.DoorbellOf(int(q.KickFD)), Call: ring.DoorbellOf(int(q.CallFD)),
		}
	}
	if len(queues) == 0 {
		return mp, nil, fmt.Errorf("no queue")
	}
	return mp, queues, nil
}
