package vswitch

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

const (
	baseFeatures = ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtionet.FeatureMAC
	allOffloads  = baseFeatures | virtionet.FeatureCsum | virtionet.FeatureHostTSO4 | virtionet.FeatureHostTSO6 | virtionet.FeatureHostECN |
		Offloads | virtionet.FeatureMergeable
)

// vm is a client: a driver of one or more queue pairs with memory of its own.
type vm struct {
	t        testing.TB
	id       uint64
	mem      *ring.Memory
	bytes    []byte
	cfg      PortConfig
	features uint64
	size     uint16
	bufBytes uint32
	rx, tx   []*ring.Driver
	rings    []ring.Queue
	queues   []Queue
	bufs     uint64 // start of the receive buffers
	out      uint64 // start of the transmit slots
	outBytes uint32
	slot     int
	gather   []byte
}

type vmOptions struct {
	features uint64
	pairs    int
	size     uint16
	bufBytes uint32 // of a receive buffer
	outBytes uint32 // of a transmit slot
}

func sharedMemory(t testing.TB, size int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

func mac(i int) MAC { return MAC{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func portAt(i int, tenant uint16) PortConfig {
	return PortConfig{
		Name: "vm" + string(rune('a'+i%26)), Tenant: tenant, MAC: mac(i),
		Addr:    netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 16),
		Gateway: netip.AddrFrom4([4]byte{10, 0, 255, 1}), GatewayMAC: MAC{2, 0xaa, 0, 0, 0, 1},
		Service: netip.AddrFrom4([4]byte{10, 0, 255, 2}), Upstream: netip.AddrFrom4([4]byte{10, 0, 255, 3}),
	}
}

func newVM(t testing.TB, id uint64, cfg PortConfig, o vmOptions) *vm {
	t.Helper()
	if o.pairs == 0 {
		o.pairs = 1
	}
	if o.size == 0 {
		o.size = 64
	}
	if o.features == 0 {
		o.features = baseFeatures
	}
	if o.bufBytes == 0 {
		o.bufBytes = 2048
	}
	if o.outBytes == 0 {
		o.outBytes = 2048
		if o.features&virtionet.FeatureHostTSO4 != 0 {
			o.outBytes = 66000
		}
	}
	l, err := ring.LayoutOf(o.size)
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{t: t, id: id, cfg: cfg, features: o.features, size: o.size, bufBytes: o.bufBytes, outBytes: o.outBytes}
	v.bufs = (uint64(2*o.pairs)*l.Bytes + 4095) &^ 4095
	v.out = v.bufs + uint64(o.pairs)*uint64(o.size)*uint64(o.bufBytes)
	v.bytes = sharedMemory(t, int(v.out+uint64(o.size)*uint64(o.outBytes))+4096)
	if v.mem, err = ring.NewMemory(ring.Region{Mem: v.bytes}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * o.pairs {
		q := l.At(uint64(i)*l.Bytes, o.features)
		d, err := ring.NewDriver(v.mem, ring.DriverConfig{Queue: q})
		if err != nil {
			t.Fatal(err)
		}
		kick, err := ring.NewDoorbell()
		if err != nil {
			t.Fatal(err)
		}
		call, err := ring.NewDoorbell()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { kick.Close(); call.Close() })
		v.rings = append(v.rings, q)
		v.queues = append(v.queues, Queue{Queue: q, Kick: kick, Call: call})
		if i%2 == 0 {
			v.rx = append(v.rx, d)
			for k := range o.size {
				v.offer(i/2, uint64(k))
			}
			d.Publish()
		} else {
			v.tx = append(v.tx, d)
		}
	}
	return v
}

// offer queues receive buffer k of a pair.
func (v *vm) offer(pair int, k uint64) {
	at := v.bufs + (uint64(pair)*uint64(v.size)+k)*uint64(v.bufBytes)
	if err := v.rx[pair].Add(nil, []ring.Segment{{Addr: at, Len: v.bufBytes}}, k); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) client() Client {
	return Client{ID: v.id, Config: v.cfg, Features: v.features, Memory: v.mem, Queues: v.queues}
}

// send queues a frame behind a header, cut into segments of at most piece bytes, and publishes it. It reports whether
// there was room.
func (v *vm) sendWith(pair int, h virtionet.Header, b []byte, piece int) bool {
	v.reapTx(pair)
	if v.tx[pair].Free() == 0 {
		return false // the slot belongs to a frame that waits
	}
	slot := v.slot % int(v.size)
	at := v.out + uint64(slot)*uint64(v.outBytes)
	mem := v.bytes[at:][:v.outBytes]
	h.Encode(mem)
	n := virtionet.HeaderBytes + copy(mem[virtionet.HeaderBytes:], b)
	var segs []ring.Segment
	for off := 0; off < n; off += piece {
		segs = append(segs, ring.Segment{Addr: at + uint64(off), Len: uint32(min(piece, n-off))})
	}
	if err := v.tx[pair].Add(segs, nil, uint64(slot)); err != nil {
		return false
	}
	v.slot++
	if v.tx[pair].Publish() {
		v.queues[2*pair+1].Kick.Ring()
	}
	return true
}

func (v *vm) send(b []byte) bool { return v.sendWith(0, virtionet.Header{}, b, 1<<20) }

func (v *vm) reapTx(pair int) {
	var done [64]ring.Completion
	for {
		n, err := v.tx[pair].Used(done[:])
		if err != nil {
			v.t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// got is a received frame.
type got struct {
	h virtionet.Header
	b []byte
}

// recv returns all frames that have arrived on a pair, and gives the buffers back.
func (v *vm) recvPair(pair int) (frames []got) {
	var done [1]ring.Completion
	var cur []byte
	var left int
	var h virtionet.Header
	for {
		n, err := v.rx[pair].Used(done[:])
		if err != nil {
			v.t.Fatal(err)
		}
		if n == 0 {
			break
		}
		k := done[0].Token
		at := v.bufs + (uint64(pair)*uint64(v.size)+k)*uint64(v.bufBytes)
		b := v.bytes[at:][:done[0].Written]
		if left == 0 {
			h = virtionet.DecodeHeader(b)
			left = int(h.NumBuffers)
			cur = append([]byte{}, b[virtionet.HeaderBytes:]...)
		} else {
			cur = append(cur, b...)
		}
		if left--; left == 0 {
			frames = append(frames, got{h, cur})
		}
		v.offer(pair, k)
	}
	if left != 0 {
		v.t.Fatalf("%d buffers of a frame are missing", left)
	}
	if v.rx[pair].Publish() {
		v.queues[2*pair].Kick.Ring()
	}
	return frames
}

func (v *vm) recv() []got { return v.recvPair(0) }

// eth makes a frame of an EtherType that has no further headers.
func eth(dst, src MAC, ether uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	b = binary.BigEndian.AppendUint16(b, ether)
	return append(b, payload...)
}

var bcast = MAC{255, 255, 255, 255, 255, 255}

// udp makes a UDP frame between two test ports.
func udp(dst, src MAC, srcIP, dstIP netip.Addr, sp, dp uint16, payload []byte) []byte {
	d := datagramTo{dst: dst.key(), src: src.key(), srcIP: number(srcIP.As4()), dstIP: number(dstIP.As4()), srcPort: sp, dstPort: dp}
	return append([]byte{}, d.frame(make([]byte, 42+len(payload)), payload)...)
}

// between makes a UDP frame from a to b.
func between(a, b *vm, payload string) []byte {
	return udp(b.cfg.MAC, a.cfg.MAC, a.cfg.Addr.Addr(), b.cfg.Addr.Addr(), 1000, 2000, []byte(payload))
}

// bench is a switch with a clock of its own.
type bed struct {
	*Switch
	t    testing.TB
	time int64
}

func newBed(t testing.TB, up Uplink, vms ...*vm) *bed {
	t.Helper()
	b := &bed{t: t, time: 1e9}
	b.Switch = New(Config{Uplink: up, Clock: func() int64 { return b.time }, Poll: ring.PollerConfig{MaxSpin: -1}})
	for _, v := range vms {
		b.attach(v)
	}
	return b
}

func (b *bed) attach(v *vm) {
	b.t.Helper()
	if err := b.Attach(v.client()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) drops(v *vm, r Reason) uint64 {
	c, ok := b.Counters(v.id)
	if !ok {
		b.t.Fatal("no such port")
	}
	return c.Drops[r]
}

// run goes on until nothing is left to do.
func (b *bed) run() {
	b.time += 1e5
	if b.up != nil {
		b.up.ready = true
	}
	for range 10000 {
		if b.Round() == 0 {
			return
		}
	}
	b.t.Fatal("the switch never comes to rest")
}

// fakeUplink is an uplink in memory.
type fakeUplink struct {
	offloads uint64
	in       [][]byte // with headers
	out      []got
	fail     bool
}

func (u *fakeUplink) Offloads() uint64 { return u.offloads }
func (u *fakeUplink) FD() int          { return -1 }
func (u *fakeUplink) Send(frames []Packet) {
	for i := range frames {
		if frames[i].Failed = u.fail; u.fail {
			continue
		}
		var b []byte
		for _, s := range frames[i].Segs {
			b = append(b, s...)
		}
		u.out = append(u.out, got{virtionet.DecodeHeader(b), b[virtionet.HeaderBytes:]})
	}
}
func (u *fakeUplink) Receive(bufs [][]byte, lens []int) (n int) {
	for n < len(bufs) && len(u.in) > 0 {
		lens[n] = copy(bufs[n], u.in[0])
		u.in = u.in[1:]
		n++
	}
	return n
}

func (u *fakeUplink) push(h virtionet.Header, b []byte) {
	w := make([]byte, virtionet.HeaderBytes, virtionet.HeaderBytes+len(b))
	h.Encode(w)
	u.in = append(u.in, append(w, b...))
}
