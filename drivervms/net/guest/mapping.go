package main

import (
	"fmt"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// mapQueues maps the memory of an attachment and returns its queues by index. After an error nothing stays mapped. An in-flight log is
// not needed: the rings say where to go on.
func mapQueues(a *abi.Attach) (mp *program.Mapping, queues map[uint16]vswitch.Queue, err error) {
	mp = &program.Mapping{}
	defer func() {
		if err != nil {
			mp.Unmap()
		}
	}()
	mem, err := mp.AddRegions(a)
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
	for _, q := range queues {
		mp.Rings = append(mp.Rings, program.Ring{Queue: q.Queue, Memory: mem})
	}
	if len(queues) == 0 {
		return mp, nil, fmt.Errorf("no queue")
	}
	return mp, queues, nil
}
