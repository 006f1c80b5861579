package main

import (
	"fmt"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// Bounds of an attachment.
const maxRegions = 64

// mapping is the memory of one attachment.
type mapping struct{ areas [][]byte }

func (m *mapping) unmap() {
	for _, b := range m.areas {
		if err := guest.UnmapGrant(b); err != nil {
			fmt.Println("blk: unmap:", err)
		}
	}
	m.areas = nil
}

// add maps one piece.
func (m *mapping) add(fd int32, offset, size uint64) ([]byte, error) {
	b, err := guest.MapGrant(fd, offset, size, true)
	if err == nil {
		m.areas = append(m.areas, b)
	}
	return b, err
}

// mapClient maps the memory and the log of an attachment. After an error nothing stays mapped.
func mapClient(id uint64, a *abi.Attach) (mp *mapping, c serve.Client, err error) {
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
		b, err := mp.add(r.FD, r.Offset, r.Size)
		if err != nil {
			return mp, c, err
		}
		regions = append(regions, ring.Region{Base: r.Base, Mem: b})
	}
	mem, err := ring.NewMemory(regions...)
	if err != nil {
		return mp, c, err
	}
	c = serve.Client{
		ID: id, Name: a.Client, Disk: a.Disk, ReadOnly: a.ReadOnly, Features: a.Features, Memory: mem,
	}
	var log []byte
	if a.LogFD >= 0 {
		if log, err = mp.add(a.LogFD, 0, a.LogSize); err != nil {
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
	}
	return mp, c, nil
}
