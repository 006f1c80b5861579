package daemon

import (
	"strconv"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// requests describes those that the log of queue i says are in flight, the oldest of them. All of it is written by others.
func (c *client) requests(i int, log []byte) (list []api.Request) {
	q := &c.att.Queues[i]
	heads := ring.InflightHeads(log)
	for _, head := range heads[:min(len(heads), api.MaxRequests)] {
		readable, writable := ring.Look(c.read, q.Desc, q.Size, head)
		r := api.Request{Head: head, What: "frame", Bytes: total(readable) + total(writable)}
		var header [virtioblk.HeaderBytes]byte
		if !c.net && len(readable) > 0 && readable[0].Len >= virtioblk.HeaderBytes && c.read(readable[0].Addr, header[:]) {
			switch h := virtioblk.DecodeHeader(header[:]); h.Type {
			case virtioblk.TypeIn:
				r.What, r.Offset, r.Bytes = "read", h.Sector*virtioblk.SectorSize, max(total(writable), virtioblk.StatusBytes)-virtioblk.StatusBytes
			case virtioblk.TypeOut:
				r.What, r.Offset, r.Bytes = "write", h.Sector*virtioblk.SectorSize, total(readable)-virtioblk.HeaderBytes
			case virtioblk.TypeFlush:
				r.What, r.Bytes = "flush", 0
			default:
				r.What = "type " + strconv.FormatUint(uint64(h.Type), 10)
			}
		} else if !c.net {
			r.What = "no header"
		}
		list = append(list, r)
	}
	return list
}

func total(list []ring.Segment) (n uint64) {
	for _, s := range list {
		n += uint64(s.Len)
	}
	return n
}
