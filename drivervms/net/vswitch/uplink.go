package vswitch

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// Uplink is a device for frames to and from the outside: a tap, or a socket whose other end is a network stack. Each
// frame stands behind a virtio-net header of virtionet.HeaderBytes.
type Uplink interface {
	// Offloads returns what the other end takes, among Offloads.
	Offloads() uint64
	// Send sends frames, each of which is the concatenation of its segments, and sets their Failed. It does not keep
	// them. There are at most UplinkBatch, with at most UplinkSegments segments each.
	Send(frames []Packet)
	// Receive fills bufs, one frame each, and sets their lengths. It does not block. It returns how many it filled.
	Receive(bufs [][]byte, lens []int) int
	// FD returns a descriptor that is readable while Receive would find something.
	FD() int
}

// Packet is a frame for Uplink.Send.
type Packet struct {
	Segs   [][]byte
	Failed bool // OUT: it was not sent
}

// Bounds of an Uplink's calls.
const (
	UplinkBatch    = 64
	UplinkSegments = 200
	UplinkBuffer   = virtionet.HeaderBytes + virtionet.MaxFrame
)

// How often the uplink is looked at while the ports keep the switch busy, in ns: when it had something lately, and when not.
const (
	lookOften  = int64(100 * time.Microsecond)
	lookSeldom = int64(time.Millisecond)
	lately     = int64(10 * time.Millisecond)
)

// outlet is the switch's side of the uplink: a sink, and a ring.Source.
type outlet struct {
	sw     *Switch
	share  *share.Client
	up     Uplink
	offl   uint64
	count  *Counters // Tx is what came from the uplink, Rx what went there
	flood  bucket
	router map[uint32]uint64 // MAC addresses of gateways, from their ARP frames
	beyond stations

	out   []Packet
	heads [][virtionet.HeaderBytes + headBytes]byte
	n     int

	bufs     [][]byte
	lens     []int
	batch    int  // buffers that the next Receive is given
	more     bool // the last Receive filled all it was given
	ready    bool // the descriptor was readable
	hung     bool // the other end is gone; what it has sent is still there
	closed   bool // and has been taken
	lastTry  int64
	lastSome int64
	frame    frame
	watched  []int
}

// Rates of broadcast and multicast frames from the uplink.
const (
	uplinkFloodRate  = 2000
	uplinkFloodBurst = 500
	maxRouters       = 64
	firstBatch       = 4
)

func newOutlet(s *Switch, up Uplink) *outlet {
	o := &outlet{
		sw: s, up: up, offl: up.Offloads() & Offloads, flood: newBucket(uplinkFloodRate, uplinkFloodBurst, s.now),
		router: map[uint32]uint64{}, beyond: stations{m: map[uint64]*station{}}, count: &Counters{}, out: make([]Packet, UplinkBatch),
		heads: make([][virtionet.HeaderBytes + headBytes]byte, UplinkBatch),
		bufs:  make([][]byte, UplinkBatch), lens: make([]int, UplinkBatch), batch: firstBatch, lastSome: -lately,
	}
	for i := range o.bufs {
		o.bufs[i] = make([]byte, UplinkBuffer) // memory is used once it is touched
	}
	return o
}

// Pending implements ring.Source.
func (o *outlet) Pending() bool { return o.more || o.ready }

// Arm implements ring.Source.
func (o *outlet) Arm() bool { return !o.Pending() }

// Disarm implements ring.Source.
func (o *outlet) Disarm() {}

// open begins to listen to the uplink, with the first port. A switch without ports leaves what comes for the next one: it may be a spare, beside
// a switch that serves.
func (o *outlet) open() {
	if !o.closed {
		o.sw.poller.Add(o, ring.DoorbellOf(o.up.FD()))
	}
}

// shut undoes open, with the last port.
func (o *outlet) shut() {
	o.sw.poller.Remove(o)
	o.more, o.ready = false, false
}

// look notes whether the uplink's descriptor was among those that a wait found readable.
func (o *outlet) look(fds []unix.PollFd) {
	for i := range fds {
		if int(fds[i].Fd) == o.up.FD() && fds[i].Revents != 0 {
			o.ready = true
			o.hung = o.hung || fds[i].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	}
}

// hostPoll is ppoll(2) that rings doorbells before it waits, and drains doorbells, and nothing else; see ring.PollerConfig.
func (o *outlet) hostPoll(fds []unix.PollFd, timeout time.Duration) (int, error) {
	for n := len(fds); n > 0 && fds[n-1].Events == ring.PollRing; n-- {
		_ = ring.DoorbellOf(int(fds[n-1].Fd)).Ring() // a broken one is its client's loss
		fds = fds[:n-1]
	}
	var limit *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(int64(timeout))
		limit = &t
	}
	n, err := unix.Ppoll(fds, limit, nil)
	if n <= 0 {
		return n, err
	}
next:
	for i := range fds {
		fd := int(fds[i].Fd)
		if fds[i].Revents&unix.POLLIN == 0 || fd == o.up.FD() {
			continue
		}
		for _, w := range o.watched {
			if fd == w {
				continue next
			}
		}
		if _, err := ring.DoorbellOf(fd).Drain(); err != nil {
			fds[i].Revents = unix.POLLERR
		}
	}
	return n, nil
}

func (o *outlet) takes() uint64 { return o.offl }
func (o *outlet) longest() int  { return virtionet.MaxFrame }

// put implements sink.
func (o *outlet) put(h *virtionet.Header, head []byte, body [][]byte, n int) Reason {
	if o.closed {
		return DropUplink
	}
	if len(body)+1 > UplinkSegments {
		return DropOffload
	}
	if o.n == len(o.out) {
		o.flush()
	}
	p, b := &o.out[o.n], &o.heads[o.n]
	h.Encode(b[:])
	k := copy(b[virtionet.HeaderBytes:], head)
	p.Failed = false
	p.Segs = append(append(p.Segs[:0], b[:virtionet.HeaderBytes+k]), body...)
	o.n++
	o.count.RxPackets++
	o.count.RxBytes += uint64(n)
	return Delivered
}

// flush sends what put has collected.
func (o *outlet) flush() {
	if o.n == 0 {
		return
	}
	o.up.Send(o.out[:o.n])
	for i := range o.out[:o.n] {
		p := &o.out[i]
		if p.Failed {
			o.count.Drops[DropUplink]++
		} else {
			o.sw.moved(0)
		}
		clear(p.Segs)
	}
	o.n = 0
}

// due reports whether it is time to look for frames from the uplink: not if it was found empty a moment ago.
func (o *outlet) due() bool {
	if o.closed || len(o.sw.macs) == 0 {
		return false
	}
	wait := lookSeldom
	if o.sw.now-o.lastSome < lately {
		wait = lookOften
	}
	return o.more || o.ready || o.sw.now-o.lastTry >= wait
}

// receive takes frames from the uplink.
func (o *outlet) receive() int {
	now := o.sw.now
	o.lastTry, o.ready = now, false
	n := o.up.Receive(o.bufs[:o.batch], o.lens[:o.batch])
	o.more = n == o.batch
	if n > 0 {
		o.lastSome = now
	} else if o.hung {
		// Its descriptor would be readable for ever.
		o.closed = true
		o.shut()
	}
	for i := range n {
		b := o.bufs[i][:min(max(o.lens[i], 0), len(o.bufs[i]))]
		o.count.TxPackets++
		o.count.TxBytes += uint64(max(len(b)-virtionet.HeaderBytes, 0))
		if r := o.deliver(b); r != Delivered {
			o.count.Drops[r]++
		}
	}
	if o.more {
		o.batch = min(2*o.batch, len(o.bufs))
	} else {
		o.batch = firstBatch
	}
	return n
}

// uplinkFeatures is what the other end may use.
const uplinkFeatures = virtionet.FeatureCsum | virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6 | virtionet.FeatureHostECN

// deliver delivers one frame from the uplink.
func (o *outlet) deliver(b []byte) Reason {
	if len(b) < virtionet.HeaderBytes {
		return DropHeader
	}
	f := &o.frame
	h := virtionet.DecodeHeader(b)
	b = b[virtionet.HeaderBytes:]
	if err := h.Check(len(b), uplinkFeatures); err != nil {
		return DropHeader
	}
	if r := f.setWith(h, b); r != Delivered {
		return r
	}
	s := o.sw
	if f.src&multicast != 0 || f.src == serviceKey || s.macs[f.src] != nil {
		return DropSpoof
	}
	switch f.ether {
	case etherIPv4:
		if src, _ := f.ipv4(); s.addrs[src] != nil {
			return DropSpoof
		}
		if o.answerQuery(f) {
			return Delivered
		}
	case etherIPv6:
		if s.addrs6[[16]byte(f.head[f.l3+8:])] != nil {
			return DropSpoof
		}
	case etherARP:
		if done, r := o.arp(f); done {
			return r
		}
	}
	o.learn(f.src)
	if f.dst&multicast == 0 {
		if p := s.macs[f.dst]; p != nil {
			if p.cfg.NoUplink {
				return DropNowhere
			}
			s.copyTo(p, 0, f)
			return Delivered
		}
	}
	if !o.flood.take(s.now) {
		return DropFlood
	}
	r := DropNowhere
	for _, p := range s.ports {
		if p.dead || p.cfg.NoUplink || f.dst&multicast == 0 && !p.cfg.Unpinned {
			continue
		}
		s.copyTo(p, 0, f)
		r = Delivered
	}
	return r
}

// UplinkCounters returns what went through the uplink: Tx came from it, Rx went to it.
func (s *Switch) UplinkCounters() Counters {
	if s.up == nil {
		return Counters{}
	}
	return *s.up.count
}
