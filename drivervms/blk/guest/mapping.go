package main

import (
	"fmt"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
)

// mapClient maps the memory and the log of an attachment. After an error nothing stays mapped.
func mapClient(id uint64, a *abi.Attach) (mp *program.Mapping, c serve.Client, err error) {
	mp = &program.Mapping{}
	defer func() {
		if err != nil {
			mp.Unmap()
		}
	}()
	mem, err := mp.AddRegions(a)
	if err != nil {
		return mp, c, err
	}
	c = serve.Client{
		ID: id, Name: a.Client, Disk: a.Disk, ReadOnly: a.ReadOnly, Features: a.Features, Memory: mem,
	}
	var log []byte
	if a.LogFD >= 0 {
		if log, err = mp.Add(a.LogFD, 0, a.LogSize); err != nil {
			return mp, c, err
		}
	}
	for _, q := range a.Queues {
		sq := serve.Queue{
			Queue:     ring.Queue{Size: q.Size, Desc: q.Desc, Avail: q.Avail, Used: q.Used},
			LastAvail: q.LastAvail,
			Kick:      ring.DoorbellOf(int(q.KickFD)), Call: ring.DoorbellOf(int(q.CallFD)),
		}
		if a.LogFD >= 0 {
			// Region i of the log belongs to queue index i (vhost-user, Inflight I/O tracking).
			n := ring.InflightBytes(q.Size)
			off := uint64(q.Index) * n
			if off+n > uint64(len(log)) {
				return mp, c, fmt.Errorf("in-flight log of %d bytes is too short for queue %d", len(log), q.Index)
			}
			sq.Log = log[off:][:n:n]
		}
		c.Queues = append(c.Queues, sq)
		mp.Rings = append(mp.Rings, program.Ring{Queue: sq.Queue, Memory: mem, Log: sq.Log})
	}
	return mp, c, nil
}
