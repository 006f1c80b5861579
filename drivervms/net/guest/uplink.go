package main

import (
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

// uplink moves frames with batched device requests, one frame each: a tap and a SOCK_SEQPACKET socket behave alike.
type uplink struct {
	fd       int32
	offloads uint64
	reqs     []abi.DevReq
	segs     []abi.DevSeg
	devIO    func([]abi.DevReq) (int, error)
}

var _ vswitch.Uplink = (*uplink)(nil)

func newUplink(fd int32, offloads uint64) *uplink {
	return &uplink{
		fd: fd, offloads: offloads, reqs: make([]abi.DevReq, vswitch.UplinkBatch),
		segs: make([]abi.DevSeg, vswitch.UplinkBatch*vswitch.UplinkSegments), devIO: guest.DevIOAlone,
	}
}

// FD implements vswitch.Uplink.
func (u *uplink) FD() int { return int(u.fd) }

// Offloads implements vswitch.Uplink.
func (u *uplink) Offloads() uint64 { return u.offloads }

// Send implements vswitch.Uplink.
func (u *uplink) Send(frames []vswitch.Packet) {
	used := 0
	for i := range frames {
		segs := u.segs[used:][:len(frames[i].Segs)]
		used += len(segs)
		for k, s := range frames[i].Segs {
			segs[k] = guest.Segment(s)
		}
		u.reqs[i] = abi.DevReq{FD: u.fd, Op: abi.DevWrite, Segs: guest.SegmentsOf(segs), NSegs: uint32(len(segs))}
	}
	n := u.perform(len(frames))
	for i := range frames {
		frames[i].Failed = i >= n || u.reqs[i].Result < 0
	}
}

// Receive implements vswitch.Uplink.
func (u *uplink) Receive(bufs [][]byte, lens []int) (n int) {
	for i, b := range bufs {
		u.segs[i] = guest.Segment(b)
		u.reqs[i] = abi.DevReq{FD: u.fd, Op: abi.DevRead, Segs: guest.SegmentsOf(u.segs[i : i+1]), NSegs: 1}
	}
	for i := range u.perform(len(bufs)) {
		// The first request that finds nothing is not the last one that is tried: a frame may have come in between. What was read
		// moves to the front.
		if r := u.reqs[i].Result; r > 0 {
			bufs[n], bufs[i] = bufs[i], bufs[n]
			lens[n] = int(min(uint64(r), uint64(len(bufs[n]))))
			n++
		}
	}
	return n
}

// perform returns how many of the first n requests the host has performed.
func (u *uplink) perform(n int) int {
	done, err := u.devIO(u.reqs[:n])
	if err != nil {
		return 0
	}
	return min(done, n)
}
