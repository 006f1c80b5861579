package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/grailos/grail/ring"
	"golang.org/x/sys/unix"
)

// recorder is a Handler that writes down its calls, and checks the order that Handler promises.
type recorder struct {
	t       testing.TB
	calls   []string
	running map[int]bool
	fail    map[string]error // by method
	over    bool
}

func (r *recorder) note(format string, args ...any) error {
	if r.over {
		r.t.Errorf("call after Disconnected: "+format, args...)
	}
	c := fmt.Sprintf(format, args...)
	r.calls = append(r.calls, c)
	for name, err := range r.fail {
		if len(c) >= len(name) && c[:len(name)] == name {
			return err
		}
	}
	return nil
}

func (r *recorder) idle(what string) {
	if len(r.running) > 0 {
		r.t.Errorf("%s while queues run: %v", what, r.running)
	}
}

func (r *recorder) open(fds ...int) {
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); fd >= 0 && err != nil {
			r.t.Errorf("descriptor %d: %v", fd, err)
		}
	}
}

func (r *recorder) Features() uint64         { return ring.FeatureVersion1 | ring.FeatureEventIdx }
func (r *recorder) ProtocolFeatures() uint64 { return ^uint64(0) }
func (r *recorder) Queues() uint16           { return 2 }

func (r *recorder) Config(offset, size uint32) ([]byte, error) {
	if uint64(offset)+uint64(size) > MaxConfig {
		r.t.Errorf("configuration space [%d, +%d)", offset, size)
	}
	return make([]byte, size), r.note("Config %d %d", offset, size)
}

func (r *recorder) SetConfig(offset uint32, data []byte) error {
	return r.note("SetConfig %d %d", offset, len(data))
}

func (r *recorder) SetMemory(rs []MemRegion) error {
	r.idle("SetMemory")
	for _, m := range rs {
		r.open(m.FD)
	}
	return r.note("SetMemory %d", len(rs))
}

func (r *recorder) SetInflight(a InflightArea) error {
	r.idle("SetInflight")
	r.open(a.FD)
	return r.note("SetInflight %d %d", a.Queues, a.QueueSize)
}

func (r *recorder) Start(q QueueState) error {
	if r.running[q.Index] {
		r.t.Errorf("queue %d started twice", q.Index)
	}
	r.open(q.Kick, q.Call, q.Err)
	if err := r.note("Start %d size %d base %d desc %#x", q.Index, q.Ring.Size, q.LastAvail, q.Ring.Desc); err != nil {
		return err
	}
	r.running[q.Index] = true
	return nil
}

func (r *recorder) SetCall(i, call int) error {
	if !r.running[i] {
		r.t.Errorf("SetCall of queue %d, which does not run", i)
	}
	r.open(call)
	return r.note("SetCall %d", i)
}

func (r *recorder) Stop(i int) (uint16, error) {
	if !r.running[i] {
		r.t.Errorf("queue %d stopped, which does not run", i)
	}
	delete(r.running, i)
	return 1000 + uint16(len(r.calls)), r.note("Stop %d", i)
}

func (r *recorder) Disconnected(err error) {
	r.idle("Disconnected")
	r.note("Disconnected")
	r.over = true
}

func newRecorder(t testing.TB) *recorder {
	return &recorder{t: t, running: map[int]bool{}, fail: map[string]error{}}
}

// openFDs returns how many descriptors this process has open.
func openFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc:", err)
	}
	return len(d)
}

// memfd returns a new descriptor with size bytes behind it.
func memfd(t testing.TB, size int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, size)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// peer sends messages straight into a session.
type peer struct {
	t testing.TB
	s *session
	h *recorder
}

func newPeer(t testing.TB) *peer {
	h := newRecorder(t)
	return &peer{t: t, s: newSession(h), h: h}
}

func (p *peer) send(req Request, payload []byte, fds ...int) (*message, error) {
	return p.s.handle(&message{req: req, flags: flagVersion | flagNeedReply, payload: payload, fds: fds})
}

// ok sends a message that must be accepted.
func (p *peer) ok(req Request, payload []byte, fds ...int) {
	p.t.Helper()
	r, err := p.send(req, payload, fds...)
	if err != nil {
		p.t.Fatalf("%v: %v", req, err)
	}
	if r != nil && len(r.payload) == u64Bytes && req != GetFeatures {
		if v, _ := r.u64(); v != 0 {
			p.t.Fatalf("%v: refused", req)
		}
	}
}

const (
	testGPA  = 0x100000
	testUser = 0x7f0000000000
	testSize = 0x10000
)

func (p *peer) negotiate() {
	p.t.Helper()
	p.ok(SetOwner, nil)
	p.ok(SetFeatures, putU64(FeatureProtocol|ring.FeatureVersion1))
	p.ok(SetProtocolFeatures, putU64(ProtocolSupported))
}

func (p *peer) memory() {
	p.t.Helper()
	p.ok(SetMemTable, encodeRegions([]MemRegion{{GPA: testGPA, User: testUser, Size: testSize}}), memfd(p.t, testSize))
}

// queue sets queue i up completely, enabling excepted.
func (p *peer) queue(i uint32) {
	p.t.Helper()
	base := uint64(testUser) + uint64(i)*0x1000
	p.ok(SetVringNum, vringState{i, 8}.encode())
	p.ok(SetVringBase, vringState{i, 5}.encode())
	p.ok(SetVringAddr, vringAddr{index: i, desc: base, avail: base + 0x100, used: base + 0x200}.encode())
	p.ok(SetVringKick, vringFD{index: i}.encode(), eventfd(p.t))
	p.ok(SetVringCall, vringFD{index: i}.encode(), eventfd(p.t))
}

func (p *peer) enable(i uint32) {
	p.t.Helper()
	p.ok(SetVringEnable, vringState{i, 1}.encode())
}

func (p *peer) expect(calls ...string) {
	p.t.Helper()
	if fmt.Sprint(p.h.calls) != fmt.Sprint(calls) {
		p.t.Fatalf("calls\n%q\nwant\n%q", p.h.calls, calls)
	}
	p.h.calls = nil
}

func TestSessionOrder(t *testing.T) {
	before := openFDs(t)
	p := newPeer(t)
	p.negotiate()
	p.memory()
	p.queue(0)
	p.expect("SetMemory 1")
	p.enable(0)
	p.expect("Start 0 size 8 base 5 desc 0x100000")

	p.ok(SetVringCall, vringFD{index: 0}.encode(), eventfd(t))
	p.expect("SetCall 0")
	p.ok(SetVringCall, vringFD{index: 0, noFD: true}.encode())
	p.expect("SetCall 0")
	p.ok(SetVringKick, vringFD{index: 0}.encode(), eventfd(t))
	p.expect("Stop 0", "Start 0 size 8 base 1000 desc 0x100000")
	p.enable(0)
	p.expect()

	old, fds := p.s.mem[0].FD, openFDs(t)
	p.memory() // replaced under a running queue
	p.expect("Stop 0", "SetMemory 1", "Start 0 size 8 base 1000 desc 0x100000")
	p.h.open(p.s.mem[0].FD)
	if p.s.mem[0].FD == old || openFDs(t) != fds {
		t.Error("the old memory's descriptor was not closed")
	}

	p.ok(SetVringEnable, vringState{0, 0}.encode())
	p.expect("Stop 0")
	p.enable(0)
	p.expect("Start 0 size 8 base 1000 desc 0x100000")

	p.queue(1)
	p.enable(1)
	p.expect("Start 1 size 8 base 5 desc 0x101000")

	r, err := p.send(GetInflightFD, (&InflightArea{Queues: 2, QueueSize: 128}).encode())
	if err != nil || len(r.fds) != 1 {
		t.Fatal(err)
	}
	a, err := r.inflight()
	if err != nil || a.Size != 2*ring.InflightBytes(128) || len(r.payload) != inflightBytes {
		t.Fatalf("in-flight log %+v, %v", a, err)
	}
	dup, err := unix.Dup(r.fds[0])
	if err != nil {
		t.Fatal(err)
	}
	p.ok(SetInflightFD, a.encode(), dup)
	p.h.open(p.s.log.FD)
	p.expect("Stop 0", "Stop 1", "SetInflight 2 128", "Start 0 size 8 base 1000 desc 0x100000", "Start 1 size 8 base 1001 desc 0x101000")

	fds = openFDs(t)
	r, err = p.send(GetVringBase, vringState{index: 1}.encode())
	if err != nil {
		t.Fatal(err)
	}
	if openFDs(t) != fds-2 {
		t.Error("a stopped queue keeps its doorbells")
	}
	if st, err := r.state(); err != nil || st != (vringState{1, 1000}) {
		t.Fatalf("base %+v, %v", st, err)
	}
	p.expect("Stop 1")
	p.enable(1) // not started: no kick since GET_VRING_BASE
	p.expect()
	p.ok(SetVringKick, vringFD{index: 1}.encode(), eventfd(t))
	p.expect("Start 1 size 8 base 1000 desc 0x101000")

	more, added := memfd(t, 0x1000), append(make([]byte, 8), (&MemRegion{GPA: 0x900000, User: 0x9000, Size: 0x1000}).encode(nil)...)
	again, err := unix.Dup(more)
	if err != nil {
		t.Fatal(err)
	}
	p.ok(AddMemReg, added, more)
	p.expect("Stop 0", "Stop 1", "SetMemory 2", "Start 0 size 8 base 1000 desc 0x100000", "Start 1 size 8 base 1001 desc 0x101000")
	p.ok(AddMemReg, added, again) // once for each pair of a card's queues
	p.expect()
	p.ok(RemMemReg, append(make([]byte, 8), (&MemRegion{GPA: 0x900000, User: 0x9000, Size: 0x1000}).encode(nil)...))
	p.h.calls = nil

	p.ok(ResetDevice, nil)
	p.expect("Stop 0", "Stop 1")
	p.s.close(nil)
	p.expect("Disconnected")
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestSessionWithoutProtocolFeatures: an old front end has no SET_VRING_ENABLE; queues run once kicked.
func TestSessionWithoutProtocolFeatures(t *testing.T) {
	p := newPeer(t)
	if _, err := p.s.handle(&message{req: SetFeatures, flags: flagVersion, payload: putU64(ring.FeatureVersion1)}); err != nil {
		t.Fatal(err)
	}
	p.memory()
	p.queue(0)
	p.expect("SetMemory 1", "Start 0 size 8 base 5 desc 0x100000", "SetCall 0")
	for _, on := range []uint32{1, 0} { // QEMU before 7.2 sends it all the same
		if _, err := p.s.handle(&message{req: SetVringEnable, flags: flagVersion, payload: vringState{0, on}.encode()}); err != nil {
			t.Fatal(err)
		}
	}
	p.expect("Stop 0")
	p.s.close(nil)
	p.expect("Disconnected")
}

// TestSessionRefuses checks what a session answers to what it must not do. Each case starts from a running queue.
func TestSessionRefuses(t *testing.T) {
	region := func(r MemRegion) []byte { return append(make([]byte, 8), r.encode(nil)...) }
	u64 := putU64
	for _, c := range []struct {
		name    string
		req     Request
		payload []byte
		fds     func() []int
		refused bool // an answer of failure, and the session goes on; otherwise it ends
	}{
		{name: "unknown request", req: 99},
		{name: "request 0", req: 0},
		{name: "payload where none is due", req: GetFeatures, payload: u64(1)},
		{name: "no payload", req: SetFeatures},
		{name: "short payload", req: SetFeatures, payload: make([]byte, 7)},
		{name: "long payload", req: SetVringNum, payload: make([]byte, 16)},
		{name: "features not offered", req: SetFeatures, payload: u64(1 << 63)},
		{name: "protocol features not offered", req: SetProtocolFeatures, payload: u64(1 << 63)},
		{name: "descriptor where none is due", req: GetFeatures, fds: func() []int { return []int{eventfd(t)} }},
		{name: "queue out of range", req: SetVringNum, payload: vringState{2, 8}.encode()},
		{name: "queue far out of range", req: SetVringBase, payload: vringState{1 << 31, 8}.encode()},
		{name: "base of queue out of range", req: GetVringBase, payload: vringState{77, 0}.encode()},
		{name: "queue size 0", req: SetVringNum, payload: vringState{0, 0}.encode()},
		{name: "queue size 3", req: SetVringNum, payload: vringState{0, 3}.encode()},
		{name: "queue size 65536", req: SetVringNum, payload: vringState{0, 65536}.encode()},
		{name: "queue size 2048", req: SetVringNum, payload: vringState{0, 2048}.encode()},
		{name: "base beyond 16 bits", req: SetVringBase, payload: vringState{0, 1 << 16}.encode()},
		{name: "enable with 2", req: SetVringEnable, payload: vringState{0, 2}.encode()},
		{name: "addresses outside", req: SetVringAddr, payload: vringAddr{desc: 1, avail: 2, used: 3}.encode(), refused: true},
		{name: "descriptor table half outside", req: SetVringAddr, refused: true,
			payload: vringAddr{desc: testUser + testSize - 64, avail: testUser + 0x100, used: testUser + 0x200}.encode()},
		{name: "used ring wraps", req: SetVringAddr, refused: true,
			payload: vringAddr{desc: testUser, avail: testUser + 0x100, used: ^uint64(0) - 3}.encode()},
		{name: "guest-physical address as user address", req: SetVringAddr, refused: true,
			payload: vringAddr{desc: testGPA, avail: testGPA + 0x100, used: testGPA + 0x200}.encode()},
		{name: "kick without descriptor", req: SetVringKick, payload: u64(0)},
		{name: "kick with two descriptors", req: SetVringKick, payload: u64(0), fds: func() []int { return []int{eventfd(t), eventfd(t)} }},
		{name: "no-descriptor flag with descriptor", req: SetVringKick, payload: u64(0x100), fds: func() []int { return []int{eventfd(t)} }},
		{name: "kick with unknown bits", req: SetVringKick, payload: u64(0x200), fds: func() []int { return []int{eventfd(t)} }},
		{name: "kick is a file", req: SetVringKick, payload: u64(0), fds: func() []int { return []int{memfd(t, 8)} }},
		{name: "kick of queue out of range", req: SetVringKick, payload: u64(200), fds: func() []int { return []int{eventfd(t)} }},
		{name: "memory table of 9", req: SetMemTable, payload: append([]byte{9, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 9*32)...)},
		{name: "memory table cut short", req: SetMemTable, payload: append([]byte{2, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32)...)},
		{name: "memory table of 2^32-1", req: SetMemTable, payload: append([]byte{255, 255, 255, 255, 0, 0, 0, 0}, make([]byte, 32)...)},
		{name: "region without descriptor", req: SetMemTable, payload: encodeRegions([]MemRegion{{GPA: 0, User: 0, Size: 4096}})},
		{name: "empty region", req: SetMemTable, payload: encodeRegions([]MemRegion{{}}), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "region larger than its file", req: SetMemTable, payload: encodeRegions([]MemRegion{{Size: 4097}}), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "region offset beyond its file", req: SetMemTable, payload: encodeRegions([]MemRegion{{Size: 4096, Offset: 4096}}), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "region offset wraps", req: SetMemTable, payload: encodeRegions([]MemRegion{{Size: 4096, Offset: ^uint64(0) - 4095}}), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "region wraps", req: SetMemTable, payload: encodeRegions([]MemRegion{{Size: 4096, GPA: ^uint64(0) - 4094}}), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "region on an eventfd", req: SetMemTable, payload: encodeRegions([]MemRegion{{Size: 4096}}), fds: func() []int { return []int{eventfd(t)} }},
		{name: "regions overlap", req: SetMemTable, payload: encodeRegions([]MemRegion{{Size: 4096, User: 1 << 20}, {Size: 4096, GPA: 4095}}), fds: func() []int { return []int{memfd(t, 4096), memfd(t, 4096)} }},
		{name: "added region overlaps", req: AddMemReg, payload: region(MemRegion{GPA: testGPA + testSize - 1, User: 0x1000, Size: 4096}), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "removed region unknown", req: RemMemReg, payload: region(MemRegion{GPA: 1, User: 1, Size: 4096}), refused: true, fds: func() []int { return []int{eventfd(t)} }},
		{name: "configuration space beyond", req: GetConfig, payload: append([]byte{1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, 0)},
		{name: "configuration space wraps", req: GetConfig, payload: append([]byte{255, 255, 255, 255, 2, 0, 0, 0, 0, 0, 0, 0}, 0, 0)},
		{name: "configuration size lies", req: SetConfig, payload: append([]byte{0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0}, 0, 0)},
		{name: "configuration cut short", req: SetConfig, payload: make([]byte, 11)},
		{name: "log for no queue", req: GetInflightFD, payload: (&InflightArea{QueueSize: 8}).encode()},
		{name: "log for 3 of 2 queues", req: GetInflightFD, payload: (&InflightArea{Queues: 3, QueueSize: 8}).encode()},
		{name: "log for queues of 7", req: GetInflightFD, payload: (&InflightArea{Queues: 1, QueueSize: 7}).encode()},
		{name: "log too small", req: SetInflightFD, payload: (&InflightArea{Queues: 2, QueueSize: 128, Size: 4096}).encode(), fds: func() []int { return []int{memfd(t, 8192)} }},
		{name: "log larger than its file", req: SetInflightFD, payload: (&InflightArea{Queues: 1, QueueSize: 128, Size: 8192}).encode(), fds: func() []int { return []int{memfd(t, 4096)} }},
		{name: "log without descriptor", req: SetInflightFD, payload: (&InflightArea{Queues: 1, QueueSize: 128, Size: 4096}).encode()},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := openFDs(t)
			p := newPeer(t)
			p.negotiate()
			p.memory()
			p.queue(0)
			p.enable(0)
			var fds []int
			if c.fds != nil {
				fds = c.fds()
			}
			r, err := p.send(c.req, c.payload, fds...)
			if c.refused {
				if err != nil {
					t.Fatalf("session ended: %v", err)
				}
				if v, err := r.u64(); err != nil || v == 0 {
					t.Fatalf("accepted: %d, %v", v, err)
				}
			} else if !errors.Is(err, ErrMessage) || r != nil {
				t.Fatalf("answer %+v, error %v", r, err)
			}
			p.s.close(err)
			if after := openFDs(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

// TestSessionHandlerFails checks that a handler's error reaches the front end and leaves everything in order.
func TestSessionHandlerFails(t *testing.T) {
	broken := errors.New("broken")
	before := openFDs(t)
	for _, method := range []string{"SetMemory", "Start", "SetCall", "SetConfig", "SetInflight"} {
		p := newPeer(t)
		p.h.fail[method] = broken
		p.negotiate()
		refused := func(req Request, payload []byte, fds ...int) {
			t.Helper()
			r, err := p.send(req, payload, fds...)
			if err != nil {
				t.Fatalf("%s: session ended: %v", method, err)
			}
			if v, err := r.u64(); err != nil || v == 0 {
				t.Fatalf("%s: %v accepted", method, req)
			}
		}
		switch method {
		case "SetMemory":
			refused(SetMemTable, encodeRegions([]MemRegion{{Size: 4096}}), memfd(t, 4096))
		case "Start":
			p.memory()
			p.queue(0)
			refused(SetVringEnable, vringState{0, 1}.encode())
		case "SetCall":
			p.memory()
			p.queue(0)
			p.enable(0)
			refused(SetVringCall, vringFD{}.encode(), eventfd(t))
		case "SetConfig":
			refused(SetConfig, configSpace{data: []byte{1}}.encode())
		case "SetInflight":
			refused(SetInflightFD, (&InflightArea{Queues: 1, QueueSize: 8, Size: 4096}).encode(), memfd(t, 4096))
		}
		p.s.close(nil)
	}
	p := newPeer(t)
	p.h.fail["Stop"] = broken
	p.negotiate()
	p.memory()
	p.queue(0)
	p.enable(0)
	if _, err := p.send(SetMemTable, encodeRegions([]MemRegion{{Size: 4096}}), memfd(t, 4096)); !errors.Is(err, broken) {
		t.Errorf("queue that cannot be stopped: %v", err)
	}
	p.s.close(broken)
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestReconnectRings: whoever waits on either side of a queue looks at it again after a reconnection.
func TestReconnectRings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if err := NewBackend(c, newRecorder(t)).Serve(context.Background()); err != nil {
				t.Error(err)
			}
		}
	}()
	f, err := Dial(context.Background(), path, Options{Features: ring.FeatureVersion1})
	if err != nil {
		t.Fatal(err)
	}
	fd := memfd(t, testSize)
	if err := f.SetMemory([]MemRegion{{FD: fd, Size: testSize, GPA: testGPA, User: testUser}}); err != nil {
		t.Fatal(err)
	}
	layout, err := ring.LayoutOf(8)
	if err != nil {
		t.Fatal(err)
	}
	kick, call := ring.DoorbellOf(eventfd(t)), ring.DoorbellOf(eventfd(t))
	if err := f.Start(1, QueueSetup{Ring: layout.At(testGPA, 0), Base: 7, Kick: kick, Call: call}); err != nil {
		t.Fatal(err)
	}
	if err := f.Reconnect(context.Background(), func(i int) (uint16, error) { return 9, nil }); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]ring.Doorbell{"kick": kick, "call": call} {
		if rung, err := b.Drain(); !rung || err != nil {
			t.Errorf("%s: rung %v, %v", name, rung, err)
		}
		b.Close()
	}
	f.Close()
	l.Close()
	<-done
	unix.Close(fd)
}
