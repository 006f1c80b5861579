package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netdriver "github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// host is hv's side of a driver that runs in this process: what are capabilities in a VM are descriptors here.
type host struct {
	t      *testing.T
	ch     *guest.Channel
	status []byte
	done   chan error
	uplink int // the other end
}

// hostIO is SysDevIO on a packet device.
func hostIO(reqs []abi.DevReq) (int, error) {
	for i := range reqs {
		r := &reqs[i]
		var iov [][]byte
		segs := bytesAt(r.Segs, uint64(r.NSegs)*abi.DevSegSize)
		for ; len(segs) > 0; segs = segs[abi.DevSegSize:] {
			iov = append(iov, bytesAt(binary.LittleEndian.Uint64(segs), binary.LittleEndian.Uint64(segs[8:])))
		}
		var n int
		var err error
		if r.Op == abi.DevWrite {
			n, err = unix.Writev(int(r.FD), iov)
		} else {
			n, err = unix.Readv(int(r.FD), iov)
		}
		r.Result = int64(n)
		if e, ok := err.(unix.Errno); ok {
			r.Result = -int64(e)
		}
	}
	return len(reqs), nil
}

func newHost(t *testing.T) *host {
	t.Helper()
	pair := func(flags int) [2]int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fds
	}
	fds, net := pair(0), pair(unix.SOCK_NONBLOCK)
	h := &host{t: t, ch: guest.NewChannel(fds[0]), status: make([]byte, 2*abi.StatusSize), done: make(chan error, 1), uplink: net[0]}
	up := newUplink(int32(net[1]), 0)
	up.devIO = hostIO
	d := newDriver(vswitch.Config{Uplink: up}, &program.Host{Name: "net", Channel: guest.NewChannel(fds[1]), Status: guest.NewStatus(h.status[:abi.StatusSize])})
	go func() { h.done <- d.loop() }()
	t.Cleanup(func() {
		unix.Close(fds[0])
		if err := <-h.done; err != guest.ErrChannelClosed {
			t.Errorf("driver ended with %v", err)
		}
		unix.Close(fds[1])
		unix.Close(net[0])
		unix.Close(net[1])
	})
	return h
}

// call sends m and returns the answer.
func (h *host) call(m abi.Message) abi.Message {
	h.t.Helper()
	if err := h.ch.Send(m); err != nil {
		h.t.Fatal(err)
	}
	got, err := h.ch.Receive()
	if err != nil || got.ID != m.ID {
		h.t.Fatalf("%+v, %v", got, err)
	}
	return got
}

func (h *host) stats(id uint64) map[string]uint64 {
	h.t.Helper()
	m := h.call(abi.Message{Type: abi.MsgStats, ID: id})
	var c map[string]uint64
	if err := json.Unmarshal([]byte(m.Text), &c); err != nil || m.Type != abi.MsgStats {
		h.t.Fatalf("%+v, %v", m, err)
	}
	return c
}

func testPort(i byte) netdriver.Port {
	return netdriver.Port{Pairs: 1, PortConfig: vswitch.PortConfig{
		Name: "vm" + string('0'+rune(i)), MAC: vswitch.MAC{2, 0, 0, 0, 0, i}, Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, i}), 24)}}
}

// nic makes a client's port and what the driver is told of it.
func nic(t *testing.T, p netdriver.Port) (*guest.NIC, *ring.Shared, abi.Message) {
	t.Helper()
	g := p.Grant(16)
	rings, used := abi.RingsBytes(g.Queues, 16), abi.UsedBytes(g.Queues)
	shared, err := ring.NewShared("grant", rings+used+g.Size())
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.AttachText()
	if err != nil {
		t.Fatal(err)
	}
	a := &abi.Attach{
		Client: p.Name, Features: guest.NetFeatures, LogFD: -1,
		Regions: []abi.Region{
			{FD: int32(shared.FD()), Base: abi.RingsAt, Size: rings, ReadOnly: true},
			{FD: int32(shared.FD()), Base: abi.UsedAt, Size: used, Offset: rings},
			{FD: int32(shared.FD()), Base: abi.BuffersAt, Size: g.Size(), Offset: rings + used},
		},
	}
	kick, call := map[int]ring.Doorbell{}, map[int]ring.Doorbell{}
	for i := range int(g.Queues) {
		for _, m := range []map[int]ring.Doorbell{kick, call} {
			b, err := ring.NewDoorbell()
			if err != nil {
				t.Fatal(err)
			}
			m[i] = b
		}
		q := abi.QueueAt(i, 16, guest.NetFeatures)
		a.Queues = append(a.Queues, abi.Queue{
			Index: uint16(i), Size: 16, KickFD: int32(kick[i].FD()), CallFD: int32(call[i].FD()), Desc: q.Desc, Avail: q.Avail, Used: q.Used,
		})
	}
	var config [64]byte
	g.Put(&config)
	n, err := guest.NewNIC(p.Name, guest.Split(shared.Mem, g.Queues, 16), &config, kick, call)
	if err != nil {
		t.Fatal(err)
	}
	return n, shared, abi.Message{Type: abi.MsgAttach, ID: uint64(p.MAC[5]), Text: text, Attach: a}
}

func frame(dst, src netdriver.Port, payload string) []byte {
	b := append(append([]byte{}, dst.MAC[:]...), src.MAC[:]...)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 99
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
	x, y := src.Addr.Addr().As4(), dst.Addr.Addr().As4()
	copy(ip[12:], x[:])
	copy(ip[16:], y[:])
	return append(append(append(b, 8, 0), ip...), payload...)
}

func receive(t *testing.T, n *guest.NIC, want []byte) {
	t.Helper()
	bufs := [][]byte{make([]byte, 2000)}
	if _, err := n.Pairs()[0].ReceiveWithin(bufs, 5*time.Second); err != nil || !bytes.Equal(bufs[0], want) {
		t.Fatalf("% x, %v", bufs[0], err)
	}
}

func TestDriver(t *testing.T) {
	h := newHost(t)
	p1, p2 := testPort(1), testPort(2)
	n1, shared1, m1 := nic(t, p1)
	n2, _, m2 := nic(t, p2)
	for _, m := range []abi.Message{m1, m2} {
		if a := h.call(m); a.Type != abi.MsgDone || a.Text != "" {
			t.Fatalf("%+v", a)
		}
	}
	if a := h.call(m1); a.Text == "" {
		t.Error("attached twice")
	}
	f := frame(p2, p1, "hello")
	if _, err := n1.Send(f); err != nil {
		t.Fatal(err)
	}
	receive(t, n2, f)

	// The uplink, both ways.
	out := frame(testPort(9), p1, "out")
	n1.Send(out)
	if err := unix.SetNonblock(h.uplink, false); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	n, err := unix.Read(h.uplink, b)
	if err != nil || !bytes.Equal(b[:n], append(make([]byte, virtionet.HeaderBytes), out...)) {
		t.Fatalf("% x, %v", b[:n], err)
	}
	for range 200 { // more than a batch
		in := frame(p1, testPort(9), "in")
		if _, err := unix.Write(h.uplink, append(make([]byte, virtionet.HeaderBytes), in...)); err != nil {
			t.Fatal(err)
		}
		receive(t, n1, in)
	}
	if c := h.stats(1); c["txPackets"] != 2 || c["rxPackets"] != 200 {
		t.Errorf("%v", c)
	}
	if c := h.stats(0); c["txPackets"] != 200 || c["rxPackets"] != 1 {
		t.Errorf("uplink: %v", c)
	}
	if got := binary.LittleEndian.Uint64(h.status[abi.StatusRequests:]); got < 201 || binary.LittleEndian.Uint64(h.status[abi.StatusBeat:]) == 0 {
		t.Errorf("status: %d", got)
	}

	text, _ := json.Marshal(vswitch.Names{Tenant: 0, Names: map[string]netip.Addr{"web": netip.MustParseAddr("10.0.0.3")}})
	if a := h.call(abi.Message{Type: abi.MsgNames, ID: 5, Text: string(text)}); a.Text != "" {
		t.Error(a.Text)
	}
	if a := h.call(abi.Message{Type: abi.MsgNames, ID: 5, Text: `{"names": {"a b": "1.2.3.4"}}`}); a.Text == "" {
		t.Error("a bad name was taken")
	}

	// A client goes, and one that breaks the rules.
	if a := h.call(abi.Message{Type: abi.MsgDetach, ID: 2}); a.Type != abi.MsgDone {
		t.Errorf("%+v", a)
	}
	binary.LittleEndian.PutUint16(shared1.Mem[m1.Attach.Queues[1].Avail+2:], 0x8000)
	ring.DoorbellOf(int(m1.Attach.Queues[1].KickFD)).Ring()
	if m, err := h.ch.Receive(); err != nil || m.Type != abi.MsgDead || m.ID != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	h.call(abi.Message{Type: abi.MsgDetach, ID: 1})
}

func TestAttachErrors(t *testing.T) {
	h := newHost(t)
	for name, change := range map[string]func(m *abi.Message){
		"nothing":        func(m *abi.Message) { m.Attach = nil },
		"no config":      func(m *abi.Message) { m.Text = "" },
		"bad config":     func(m *abi.Message) { m.Text = "{" },
		"bad MAC":        func(m *abi.Message) { m.Text = `{"name":"x","mac":"1:2"}` },
		"no memory":      func(m *abi.Message) { m.Attach.Regions = nil },
		"bad memory":     func(m *abi.Message) { m.Attach.Regions[0].FD = -1 },
		"queue too many": func(m *abi.Message) { m.Attach.Queues[1].Index = 2 * vswitch.MaxPairs },
		"queue twice":    func(m *abi.Message) { m.Attach.Queues[1].Index = 0 },
		"no queue":       func(m *abi.Message) { m.Attach.Queues = nil },
		"queue outside":  func(m *abi.Message) { m.Attach.Queues[1].Desc = 1 << 30 },
		"legacy":         func(m *abi.Message) { m.Attach.Features = 0 },
		"queue of three": func(m *abi.Message) { m.Attach.Queues[0].Size = 3 },
	} {
		_, _, m := nic(t, testPort(1))
		change(&m)
		if a := h.call(m); a.Text == "" {
			t.Errorf("%s: attached", name)
		}
	}
	_, _, m := nic(t, testPort(1))
	if a := h.call(m); a.Text != "" {
		t.Errorf("%s", a.Text)
	}
}

// TestQueueByQueue: a vhost-user front end's queues come and go one by one; what waits in them is served once there is a pair.
func TestQueueByQueue(t *testing.T) {
	h := newHost(t)
	n1, _, m1 := nic(t, testPort(1))
	n2, _, m2 := nic(t, testPort(2))
	if a := h.call(m1); a.Text != "" {
		t.Fatal(a.Text)
	}
	one := func(i int, id uint64) abi.Message {
		m, a := m2, *m2.Attach
		a.Queues = m2.Attach.Queues[i : i+1]
		m.ID, m.Attach = id, &a
		return m
	}
	f := frame(testPort(1), testPort(2), "early")
	n2.Send(f)
	if a := h.call(one(1, 11)); a.Text != "" {
		t.Fatal(a.Text)
	}
	if a := h.call(one(1, 12)); a.Text == "" {
		t.Error("a queue was attached twice")
	}
	if a := h.call(one(0, 10)); a.Text != "" {
		t.Fatal(a.Text)
	}
	receive(t, n1, f)
	if c := h.stats(10); c["txPackets"] != 1 {
		t.Errorf("%v", c)
	}
	h.call(abi.Message{Type: abi.MsgDetach, ID: 11})
	n2.Send(f)
	if a := h.call(one(1, 13)); a.Text != "" {
		t.Fatal(a.Text)
	}
	receive(t, n1, f)
	back := frame(testPort(2), testPort(1), "back")
	n1.Send(back)
	receive(t, n2, back)
	// A rule broken on one queue ends all of them.
	ring.DoorbellOf(int(m2.Attach.Queues[1].KickFD)).Ring()
	binary.LittleEndian.PutUint16(sharedOf(t, m2)[m2.Attach.Queues[1].Avail+2:], 0x8000)
	ring.DoorbellOf(int(m2.Attach.Queues[1].KickFD)).Ring()
	dead := map[uint64]bool{}
	for range 2 {
		m, err := h.ch.Receive()
		if err != nil || m.Type != abi.MsgDead {
			t.Fatalf("%+v, %v", m, err)
		}
		dead[m.ID] = true
	}
	if !dead[10] || !dead[13] {
		t.Errorf("%v", dead)
	}
	h.call(abi.Message{Type: abi.MsgDetach, ID: 10})
	if a := h.call(one(0, 14)); a.Text == "" {
		t.Error("a dead port was joined")
	}
	h.call(abi.Message{Type: abi.MsgDetach, ID: 13})
	if a := h.call(one(0, 15)); a.Text != "" {
		t.Error(a.Text)
	}
}

// sharedOf maps the memory of an attachment once more.
func sharedOf(t *testing.T, m abi.Message) []byte {
	t.Helper()
	r := m.Attach.Regions[0]
	b, err := guest.MapGrant(r.FD, 0, r.Size, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.UnmapGrant(b) })
	return b
}

// TestMisbehave: on request the program faults, which ends it with its last words. It runs in a process of its own.
func TestMisbehave(t *testing.T) {
	if os.Getenv("MISBEHAVE") == "1" {
		defer program.LastWords()
		status := guest.NewStatus(make([]byte, 2*abi.StatusSize)[:abi.StatusSize])
		newDriver(vswitch.Config{}, &program.Host{Name: "net", Channel: guest.NewChannel(-1), Status: status}).inject("fault")
		return
	}
	c := exec.Command(os.Args[0], "-test.run=^TestMisbehave$")
	c.Env = append(os.Environ(), "MISBEHAVE=1")
	out, err := c.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "0xbad0") && !strings.Contains(string(out), "invalid memory") {
		t.Errorf("%v: %s", err, out)
	}
}
