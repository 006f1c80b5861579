package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtionet"
)

const netFeatures = ring.FeatureVersion1 | ring.FeatureEventIdx | virtionet.FeatureMAC | virtionet.FeatureMultiQueue

// netRig starts a portal with a network card, and a host when loop is not nil.
func netRig(t *testing.T, pairs int, loop *looper) (p *portal, socket string) {
	t.Helper()
	conf := virtionet.Config{MAC: [6]byte{2, 0, 0, 0, 0, 1}, MaxPairs: uint16(pairs)}
	enc := conf.Encode()
	p, socket, control := rig(t, func(s *hv.PortalSpec) {
		s.Driver = "net0"
		s.Devices = []hv.PortalDevice{{Kind: hv.PortalNet, Name: "nic", Space: enc[:], Queues: 2 * pairs, Features: netFeatures, Config: loopConfig}}
	})
	if loop != nil {
		stop, done := make(chan struct{}), make(chan struct{})
		go func() { defer close(done); loop.run(stop) }()
		h := startHost(t, control, nil, loop)
		t.Cleanup(func() {
			h.close()
			close(stop)
			<-done
			for _, err := range loop.fail {
				t.Error(err)
			}
			for _, what := range loop.odd {
				t.Error("attachment", what)
			}
		})
	}
	return p, socket
}

// netClient is the driver of a network card.
type netClient struct {
	t      *testing.T
	f      *vhostuser.Frontend
	shared *ring.Shared
	mem    *ring.Memory
	pairs  [][2]*netQueue // receive, transmit
	sent   int
}

type netQueue struct {
	drv        *ring.Driver
	setup      vhostuser.QueueSetup
	kick, call ring.Doorbell
	at         uint64 // of its buffers
}

const (
	netGPA, netSize   = 1 << 30, 1 << 20
	netQueueSize      = 16
	netArea, netFrame = 1 << 16, 64 // bytes a queue, bytes a buffer
)

func newNetClient(t *testing.T, socket string, pairs int, opt vhostuser.Options) *netClient {
	t.Helper()
	f, err := vhostuser.Dial(context.Background(), socket, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	c := &netClient{t: t, f: f}
	if c.shared, err = ring.NewShared("net", netSize); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.shared.Close() })
	if err := f.SetMemory([]vhostuser.MemRegion{{FD: c.shared.FD(), Size: netSize, GPA: netGPA, User: 1 << 40}}); err != nil {
		t.Fatal(err)
	}
	if c.mem, err = ring.NewMemory(ring.Region{Base: netGPA, Mem: c.shared.Mem}); err != nil {
		t.Fatal(err)
	}
	layout, err := ring.LayoutOf(netQueueSize)
	if err != nil {
		t.Fatal(err)
	}
	for i := range pairs {
		var p [2]*netQueue
		for k := range p {
			area := uint64(netGPA + (2*i+k)*netArea)
			q := &netQueue{at: area + netArea/2}
			for _, b := range []*ring.Doorbell{&q.kick, &q.call} {
				if *b, err = ring.NewDoorbell(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { b.Close() })
			}
			q.setup = vhostuser.QueueSetup{Ring: layout.At(area, f.Features()), Kick: q.kick, Call: q.call}
			if q.drv, err = ring.NewDriver(c.mem, ring.DriverConfig{Queue: q.setup.Ring}); err != nil {
				t.Fatal(err)
			}
			p[k] = q
		}
		c.pairs = append(c.pairs, p)
	}
	return c
}

// startAll starts every queue, transmit first: the order must not matter.
func (c *netClient) startAll() {
	c.t.Helper()
	for i, p := range c.pairs {
		for _, k := range []int{1, 0} {
			if err := c.f.Start(2*i+k, p[k].setup); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

// add offers one buffer of a queue.
func (q *netQueue) add(slot int, b []byte, mem *ring.Memory) error {
	s := []ring.Segment{{Addr: q.at + uint64(slot*netFrame), Len: netFrame}}
	if b == nil {
		return q.drv.Add(nil, s, uint64(slot))
	}
	to, err := mem.Slice(s[0].Addr, netFrame)
	if err != nil {
		return err
	}
	copy(to, b)
	return q.drv.Add(s, nil, uint64(slot))
}

// echo sends n frames on a pair and checks that they come back in order.
func (c *netClient) echo(pair, n int) error {
	rx, tx := c.pairs[pair][0], c.pairs[pair][1]
	for range n {
		c.sent++
		want := fmt.Sprintf("frame %d", c.sent)
		if err := errors.Join(rx.add(0, nil, c.mem), tx.add(0, []byte(want), c.mem)); err != nil {
			return err
		}
		for _, q := range []*netQueue{rx, tx} {
			if q.drv.Publish() {
				if err := q.kick.Ring(); err != nil {
					return err
				}
			}
		}
		for _, q := range []*netQueue{rx, tx} {
			if err := q.reap(5 * time.Second); err != nil {
				return fmt.Errorf("%s: %w", want, err)
			}
		}
		got, err := c.mem.Slice(rx.at, uint32(len(want)))
		if err != nil || string(got) != want {
			return fmt.Errorf("received %q, want %q: %v", got, want, err)
		}
	}
	return nil
}

var errNoCompletion = errors.New("no completion")

// reap waits for one completion.
func (q *netQueue) reap(timeout time.Duration) error {
	var done [netQueueSize]ring.Completion
	p := ring.NewPoller(ring.PollerConfig{})
	p.Add(q.drv, q.call)
	for {
		n, err := q.drv.Used(done[:])
		if n > 0 || err != nil {
			return err
		}
		if wake, err := p.Wait(timeout); err != nil || wake == ring.WakeTimeout {
			return errors.Join(err, errNoCompletion)
		}
	}
}

// used returns or sets the used index of a queue, as any client can.
func (c *netClient) used(q *netQueue) []byte {
	b, err := c.mem.Slice(q.setup.Ring.Used+2, 2)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func attachments(n int) func(*hv.PortalState) bool {
	return func(s *hv.PortalState) bool { return len(s.Attachments) == n }
}

// TestNet drives a card of two pairs: before there is a driver, while the driver is replaced, with a pair that comes and
// goes, and to an orderly end.
func TestNet(t *testing.T) {
	loop := newLooper()
	p, socket := netRig(t, 2, nil)
	c := newNetClient(t, socket, 2, vhostuser.Options{Features: netFeatures})
	if c.f.Features()&virtionet.FeatureMultiQueue == 0 || c.f.ProtocolFeatures()&vhostuser.ProtocolInflight != 0 {
		t.Fatalf("features %#x, %#x", c.f.Features(), c.f.ProtocolFeatures())
	}
	if n, err := c.f.QueueNum(); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if b, err := c.f.Config(0, virtionet.ConfigBytes); err != nil || virtionet.DecodeConfig(b).MaxPairs != 2 {
		t.Fatal(b, err)
	}
	c.startAll()
	control := filepath.Join(filepath.Dir(socket), "control")
	h := startHost(t, control, nil, loop)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); loop.run(stop) }()
	defer func() { h.close(); close(stop); <-done }()
	for pair := range 2 {
		if err := c.echo(pair, 20); err != nil {
			t.Fatal(err)
		}
	}
	// The driver VM is replaced under load.
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
				h.replaceDriver()
			}
		}
	})
	err := errors.Join(c.echo(0, 50), c.echo(1, 50))
	close(quit)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	// The second pair is turned off, and on again: it goes on where it was.
	for round := range 3 {
		for i := 2; i < 4; i++ {
			if err := c.f.Enable(i, false); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, p, attachments(2))
		if err := c.echo(0, 5); err != nil {
			t.Fatal(round, err)
		}
		for i := 3; i >= 2; i-- {
			if err := c.f.Enable(i, true); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.echo(1, 5); err != nil {
			t.Fatal(round, err)
		}
	}
	// One half of a pair is enough for nothing, and hurts nobody.
	if err := c.f.Enable(2, false); err != nil {
		t.Fatal(err)
	}
	if err := c.echo(0, 5); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint16{20 + 50 + 15 + 5, 20 + 50 + 15 + 5, 20 + 50 + 15, 20 + 50 + 15} {
		if base, err := c.f.Stop(i); err != nil || base != want {
			t.Errorf("queue %d stops at %d, want %d: %v", i, base, want, err)
		}
	}
	waitFor(t, p, attachments(0))
	loop.mu.Lock()
	defer loop.mu.Unlock()
	if loop.most != 4 || len(loop.parts) != 0 || loop.odd != nil || loop.fail != nil {
		t.Errorf("at most %d queues at once, %d left, attachments %v, failures %v", loop.most, len(loop.parts), loop.odd, loop.fail)
	}
}

// TestNetUsedIndex: whatever number the client writes as used index is what it gets back.
func TestNetUsedIndex(t *testing.T) {
	for _, want := range []uint16{0, 1, 0x7fff, 0xffff} {
		_, socket := netRig(t, 1, nil)
		c := newNetClient(t, socket, 1, vhostuser.Options{Features: netFeatures})
		c.startAll()
		binary.LittleEndian.PutUint16(c.used(c.pairs[0][0]), want)
		if base, err := c.f.Stop(0); err != nil || base != want {
			t.Errorf("base %#x, want %#x: %v", base, want, err)
		}
	}
}

// TestNetSingle: a client without the protocol's MQ has one pair, and so has every client of a card with one.
func TestNetSingle(t *testing.T) {
	for _, c := range []struct {
		name     string
		pairs    int
		features uint64
		protocol uint64
		queues   int // that can be started
		mq       bool
	}{
		{"all", 4, netFeatures, vhostuser.ProtocolSupported, 8, true},
		{"without the feature", 4, netFeatures &^ virtionet.FeatureMultiQueue, vhostuser.ProtocolSupported, 8, false},
		{"without the protocol", 4, netFeatures &^ virtionet.FeatureMultiQueue, vhostuser.ProtocolSupported &^ vhostuser.ProtocolMultiQueue, 2, false},
		{"one pair", 1, netFeatures, vhostuser.ProtocolSupported, 2, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, socket := netRig(t, c.pairs, nil)
			n := newNetClient(t, socket, c.pairs, vhostuser.Options{Features: c.features, Protocol: c.protocol})
			if got := n.f.Features()&virtionet.FeatureMultiQueue != 0; got != c.mq {
				t.Errorf("multi-queue %t, want %t", got, c.mq)
			}
			for i := range c.queues {
				if err := n.f.Start(i, n.pairs[i/2][i%2].setup); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, p, attachments(c.queues))
			if c.queues < 2*c.pairs {
				if err := n.f.Start(c.queues, n.pairs[1][0].setup); err == nil {
					t.Error("one more queue was started")
				}
				waitFor(t, p, attachments(0)) // that was the end
			}
		})
	}
	t.Run("the feature alone", func(t *testing.T) {
		_, socket := netRig(t, 2, nil)
		f, err := vhostuser.Dial(context.Background(), socket, vhostuser.Options{
			Features: netFeatures, Protocol: vhostuser.ProtocolReplyAck,
		})
		if err == nil {
			f.Close()
			t.Error("acknowledged VIRTIO_NET_F_MQ without knowing the number of queues")
		}
	})
}

// TestNetClients: a card has one client; the next is served when that one is gone, and is not kept waiting for ever.
func TestNetClients(t *testing.T) {
	loop := newLooper()
	p, socket := netRig(t, 1, loop)
	opt := vhostuser.Options{Features: netFeatures}
	first := newNetClient(t, socket, 1, opt)
	first.startAll()
	if err := first.echo(0, 3); err != nil {
		t.Fatal(err)
	}
	// Those that wait are few, and are let go when their time is up.
	var waiting []net.Conn
	for range 2 * maxPortClients {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waiting = append(waiting, c)
	}
	last := waiting[len(waiting)-1]
	last.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("there is room for too many:", err)
	}
	waitFor(t, p, func(s *hv.PortalState) bool {
		return s.Clients == 1 && len(s.Errors) == maxPortClients-1 && strings.Contains(s.Errors[0], "has a client already")
	})
	if err := first.echo(0, 3); err != nil {
		t.Fatal(err)
	}
	// A client that was killed comes back at once: its former queues are gone when the new ones are attached.
	for range 20 {
		first.f.Close()
		next := newNetClient(t, socket, 1, opt)
		next.startAll()
		if err := next.echo(0, 3); err != nil {
			t.Fatal(err)
		}
		first = next
	}
	first.f.Close()
	waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == 0 && len(s.Attachments) == 0 })
	loop.mu.Lock()
	defer loop.mu.Unlock()
	if loop.most != 2 {
		t.Errorf("%d queues were served at once", loop.most)
	}
}

// TestNetQEMU boots QEMU's network boot program from a card of ours: a virtio driver that nobody here wrote sends
// frames and gets them back.
func TestNetQEMU(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("SKIPPED: qemu-system-x86_64 is not installed (Debian package qemu-system-x86):", err)
	}
	if m, _ := filepath.Glob("/usr/lib/ipxe/qemu/pxe-virtio.rom"); len(m) == 0 {
		t.Skip("SKIPPED: no network boot ROM (Debian package ipxe-qemu)")
	}
	for _, c := range []struct {
		pairs          int
		netdev, device string
	}{{1, "", ""}, {2, ",queues=2", ",mq=on,vectors=6"}} {
		t.Run(fmt.Sprintf("%d pairs", c.pairs), func(t *testing.T) {
			loop := newLooper()
			p, socket := netRig(t, c.pairs, loop)
			cmd := exec.Command(qemu, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
				"-machine", "pc,memory-backend=m0,vmport=off", "-m", "64", "-object", "memory-backend-memfd,id=m0,size=64M,share=on",
				"-chardev", "socket,id=c,path="+socket, "-netdev", "vhost-user,id=n,chardev=c"+c.netdev,
				"-device", "virtio-net-pci,netdev=n,disable-legacy=on,bootindex=0,mac=02:00:00:00:00:01"+c.device)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			begin := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			most := 0
			for taken := 0; taken < 2; {
				select {
				case err := <-ended:
					t.Fatalf("QEMU ended: %v\n%s", err, out.String())
				case <-tick.C:
				}
				loop.mu.Lock()
				taken, most = loop.taken, loop.most
				loop.mu.Unlock()
				if time.Since(begin) > 40*time.Second {
					cmd.Process.Kill()
					<-ended
					t.Fatalf("%d frames after %v\n%s", taken, time.Since(begin), out.String())
				}
			}
			t.Logf("two frames after %v, at most %d queues", time.Since(begin).Round(time.Millisecond), most)
			cmd.Process.Kill()
			<-ended
			waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == 0 && len(s.Attachments) == 0 })
		})
	}
}
