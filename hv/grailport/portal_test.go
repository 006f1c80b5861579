package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
)

const sectors = 4096

// memDisk is a ringtest.Disk.
type memDisk struct {
	mu sync.Mutex
	b  []byte
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.b[off:]), nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.b[off:], p), nil
}

func (d *memDisk) Sync() error { return nil }

// rig starts a portal, without a host.
func rig(t *testing.T, change func(*hv.PortalSpec)) (p *portal, socket, control string) {
	t.Helper()
	dir := t.TempDir()
	socket, control = filepath.Join(dir, "disk"), filepath.Join(dir, "control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	c, err := hv.Listen(control)
	if err != nil {
		t.Fatal(err)
	}
	conf := virtioblk.Config{Capacity: sectors, SegMax: 126, NumQueues: 2}
	enc := conf.Encode()
	spec := hv.PortalSpec{Driver: "blk0", FirstID: 1 << 32, Devices: []hv.PortalDevice{{
		Name: "d", Space: enc[:], Queues: 2,
		Features: ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtioblk.FeatureFlush | virtioblk.FeatureMultiQueue,
	}}}
	if change != nil {
		change(&spec)
	}
	p = newPortal(spec)
	dev := newDevice(spec.Devices[0])
	dev.wait = time.Second
	go p.acceptClients(dev, l)
	fd, err := unix.FcntlInt(c.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	go p.acceptControl(fd)
	t.Cleanup(func() { l.Close() })
	return p, socket, control
}

func dial(t *testing.T, path string) hv.Portal {
	t.Helper()
	c, err := hv.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	return hv.Portal{Conn: c}
}

// client connects, with or without a log of its own.
func client(t *testing.T, socket string, protocol uint64) (*vhostuser.Frontend, *ringtest.BlkClient) {
	t.Helper()
	f, err := vhostuser.Dial(context.Background(), socket, vhostuser.Options{
		Features: ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtioblk.FeatureFlush, Protocol: protocol,
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := ringtest.NewBlkClient(64, 32, 4096, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); c.Close() })
	return f, c
}

// work writes and reads back n blocks with rnd, up to 16 at a time.
func work(c *ringtest.BlkClient, rnd *rand.Rand, base, n int) error {
	type pending struct {
		sector uint64
		fill   byte
	}
	for i := 0; i < n; i += 16 {
		var p [16]pending
		for pass := range 2 {
			for k := range p {
				b := c.Data(k)
				typ := virtioblk.TypeIn
				if pass == 0 {
					p[k] = pending{uint64(base + (i+k)%64*8), byte(rnd.Uint32())}
					typ = virtioblk.TypeOut
				}
				for j := range b {
					b[j] = p[k].fill ^ byte(pass)
				}
				if err := c.Submit(k, typ, p[k].sector, 4096); err != nil {
					return err
				}
			}
			if err := c.Publish(); err != nil {
				return err
			}
			var bad error
			for left := len(p); left > 0; {
				if err := c.Reap(5*time.Second, func(slot int, status byte) {
					left--
					if status != virtioblk.StatusOK {
						bad = fmt.Errorf("status %d", status)
					}
				}); err != nil {
					return err
				}
			}
			if bad != nil {
				return bad
			}
		}
		for k := range p {
			for j, b := range c.Data(k) {
				if b != p[k].fill {
					return fmt.Errorf("block %d differs at %d", i+k, j)
				}
			}
		}
	}
	return nil
}

func TestPortal(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for name, protocol := range map[string]uint64{"own log": 0, "no log": vhostuser.ProtocolSupported &^ vhostuser.ProtocolInflight} {
		t.Run(name, func(t *testing.T) {
			disk := &memDisk{b: make([]byte, sectors*512)}
			p, socket, control := rig(t, nil)
			f, c := client(t, socket, protocol)
			if b, err := f.Config(0, 60); err != nil || virtioblk.DecodeConfig(b).Capacity != sectors {
				t.Fatal(b, err)
			}
			if n, err := f.QueueNum(); n != 2 || err != nil {
				t.Fatal(n, err)
			}
			if have, err := f.SetInflight(2, 64); err != nil || have != (protocol == 0) {
				t.Fatal(have, err)
			}
			// The client starts before there is a host: it waits.
			if err := c.Attach(f, 0); err != nil {
				t.Fatal(err)
			}
			h := newHost(t, control, disk)
			defer func() { h.close() }()
			if err := work(c, rnd, 0, 256); err != nil {
				t.Fatal(err)
			}
			// The driver VM is replaced under load.
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					select {
					case <-stop:
						return
					default:
						h.replaceDriver()
					}
				}
			}()
			err := work(c, rnd, 0, 1024)
			close(stop)
			wg.Wait()
			if err != nil {
				t.Fatal(err)
			}
			// Stopping drains; the index fits; the queue goes on from there.
			before := c.Driver()
			base, err := f.Stop(0)
			if err != nil {
				t.Fatal(err)
			}
			if served, _ := h.count(); served != 0 {
				t.Errorf("%d queues are served after a stop", served)
			}
			if want := uint16(256+1024) * 2; base != want {
				t.Errorf("base %d, want %d", base, want)
			}
			if before.Outstanding() != 0 {
				t.Error("requests are outstanding")
			}
			// The guest starts its rings anew: the old log must not get in the way.
			setup, err := c.Setup(f.Features())
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Start(0, setup); err != nil {
				t.Fatal(err)
			}
			if err := work(c, rnd, 0, 64); err != nil {
				t.Fatal(err)
			}
			f.Close()
			waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == 0 && len(s.Attachments) == 0 })
		})
	}
}

// waitFor waits until the portal's state is as wished.
func waitFor(t *testing.T, p *portal, ok func(*hv.PortalState) bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		p.mu.Lock()
		s, changed := p.state(), p.changed
		p.mu.Unlock()
		if ok(s) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			b, _ := json.Marshal(s)
			t.Fatalf("portal stays in state %s", b)
		}
	}
}

// TestNewGraild replaces graild while a client works: the next one finds everything again.
func TestNewGraild(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	disk := &memDisk{b: make([]byte, sectors*512)}
	p, socket, control := rig(t, nil)
	h := newHost(t, control, disk)
	f, c := client(t, socket, 0)
	if err := c.Attach(f, 1); err != nil {
		t.Fatal(err)
	}
	if err := work(c, rnd, 0, 64); err != nil {
		t.Fatal(err)
	}
	h.close()
	if err := work(c, rnd, 0, 64); err != nil { // the driver VM goes on
		t.Fatal(err)
	}
	next := newHost(t, control, disk)
	next.mu.Lock()
	next.served = h.served // as the driver's Status.Attached tells
	next.mu.Unlock()
	defer next.close()
	f.Close()
	waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == 0 && len(s.Attachments) == 0 })
	if served, _ := next.count(); served != 0 {
		t.Errorf("%d queues are still served", served)
	}
}

func TestSetCall(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	disk := &memDisk{b: make([]byte, sectors*512)}
	p, socket, control := rig(t, nil)
	h := newHost(t, control, disk)
	defer h.close()
	f, c := client(t, socket, 0)
	if err := c.Attach(f, 0); err != nil {
		t.Fatal(err)
	}
	if err := work(c, rnd, 0, 64); err != nil {
		t.Fatal(err)
	}
	// Restarting with the same doorbells is what the front end can do; the session's own SetCall is driven
	// directly here, as QEMU does it when a guest masks an interrupt.
	bell, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	base, err := f.Stop(0)
	if err != nil {
		t.Fatal(err)
	}
	s := newSession(p, newDevice(p.spec.Devices[0]), "direct", func(error) {})
	region := c.Region()
	region.Sealed = true
	if err := s.SetMemory([]vhostuser.MemRegion{region}); err != nil {
		t.Fatal(err)
	}
	setup, err := c.Setup(f.Features())
	if err != nil {
		t.Fatal(err)
	}
	_ = base
	state := vhostuser.QueueState{Ring: setup.Ring, Kick: setup.Kick.FD(), Call: bell.FD(), Err: -1}
	if err := s.Start(state); err != nil {
		t.Fatal(err)
	}
	if err := s.SetCall(0, setup.Call.FD()); err != nil {
		t.Fatal(err)
	}
	if err := work(c, rnd, 0, 64); err != nil {
		t.Fatal(err)
	}
	if last, err := s.Stop(0); err != nil || last != 128 {
		t.Error(last, err)
	}
	s.Disconnected(nil)
}

func TestRefusals(t *testing.T) {
	t.Run("driver refuses", func(t *testing.T) {
		p, socket, control := rig(t, nil)
		h := newHost(t, control, &memDisk{b: make([]byte, sectors*512)})
		defer h.close()
		h.mu.Lock()
		h.refuse = "the ring lies outside"
		h.mu.Unlock()
		f, c := client(t, socket, 0)
		if err := c.Attach(f, 0); err != nil {
			t.Log(err) // the answer to the last message may already be the end
		}
		waitFor(t, p, func(s *hv.PortalState) bool {
			return s.Clients == 0 && len(s.Attachments) == 0 && len(s.Errors) == 1 && strings.Contains(s.Errors[0], "lies outside")
		})
	})
	t.Run("unsealed memory", func(t *testing.T) {
		for _, allow := range []bool{false, true} {
			_, socket, _ := rig(t, func(s *hv.PortalSpec) { s.AllowUnsealed = allow })
			f, _ := client(t, socket, 0)
			file, err := os.Create(filepath.Join(t.TempDir(), "memory"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			if err := file.Truncate(1 << 20); err != nil {
				t.Fatal(err)
			}
			err = f.SetMemory([]vhostuser.MemRegion{{FD: int(file.Fd()), Size: 1 << 20, GPA: 0, User: 1 << 30}})
			if (err == nil) != allow {
				t.Errorf("allowed %t: %v", allow, err)
			}
		}
	})
	t.Run("too many clients", func(t *testing.T) {
		p, socket, _ := rig(t, nil)
		var conns []net.Conn
		for range maxClients {
			c, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == maxClients })
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("one more client was let in")
		}
		for _, c := range append(conns, c) {
			c.Close()
		}
		waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == 0 })
	})
	t.Run("garbage", func(t *testing.T) {
		p, socket, control := rig(t, nil)
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(strings.Repeat("garbage ", 100)))
		waitFor(t, p, func(s *hv.PortalState) bool { return s.Clients == 0 && len(s.Errors) == 1 })
		ops := dial(t, control)
		defer ops.Close()
		if _, _, err := ops.Fetch(99); !errors.Is(err, hv.ErrPortal) {
			t.Error(err)
		}
		if err := ops.Attached(99, nil); !errors.Is(err, hv.ErrPortal) {
			t.Error(err)
		}
		if err := ops.Detached(99); err != nil {
			t.Error(err)
		}
		if err := ops.Send("nonsense"); err != nil {
			t.Fatal(err)
		}
		if _, err := ops.Wait(0); !errors.Is(err, hv.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestSpec(t *testing.T) {
	for s, ok := range map[string]bool{
		`{"devices":[{"name":"d","listen":4,"queues":1}]}`:                                                                     true,
		`{"devices":[{"kind":"blk","name":"d","listen":4,"queues":256}]}`:                                                      true,
		`{"devices":[{"name":"d","listen":4,"queues":0}]}`:                                                                     false,
		`{"devices":[{"name":"d","listen":4,"queues":257}]}`:                                                                   false,
		`{"devices":[{"kind":"gpu","name":"d","listen":4,"queues":1}]}`:                                                        false,
		`{"devices":[{"kind":"net","name":"n","listen":4,"queues":2}]}`:                                                        true,
		`{"devices":[{"kind":"net","name":"n","listen":4,"queues":256}]}`:                                                      true,
		`{"devices":[{"kind":"net","name":"n","listen":4,"queues":3}]}`:                                                        false,
		`{"devices":[{"kind":"net","name":"","listen":4,"queues":2}]}`:                                                         false,
		`{"devices":[{"kind":"net","name":"n","listen":4,"queues":2},{"kind":"net","name":"m","listen":5,"queues":256}]}`:      false,
		`{"devices":[{"kind":"net","name":"` + strings.Repeat("n", maxNetName) + `","listen":4,"queues":2}]}`:                  true,
		`{"devices":[{"kind":"net","name":"` + strings.Repeat("n", maxNetName+1) + `","listen":4,"queues":2}]}`:                false,
		`{"devices":[{"kind":"net","name":"n","listen":4,"queues":2,"config":"` + strings.Repeat("c", hv.MaxConfig) + `"}]}`:   true,
		`{"devices":[{"kind":"net","name":"n","listen":4,"queues":2,"config":"` + strings.Repeat("c", hv.MaxConfig+1) + `"}]}`: false,
		`{"devices":[{"name":"d","listen":4,"queues":1,"space":"` + strings.Repeat("AAAA", 86) + `"}]}`:                        false,
		`{"devices":[]}`: false,
		``:               false,
		`[]`:             false,
	} {
		f, err := hv.NewSealed("spec", []byte(s))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readSpec(f); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
}
