package vswitch

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtionet"
)

// worker runs a switch on a goroutine of its own, and functions between its rounds.
type worker struct {
	sw   *Switch
	bell ring.Doorbell
	todo chan func()
	done chan struct{}
	last atomic.Pointer[string]
}

func newWorker(t testing.TB) *worker {
	t.Helper()
	bell, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{sw: New(Config{}), bell: bell, todo: make(chan func()), done: make(chan struct{})}
	w.sw.Watch(bell.FD())
	go func() {
		defer close(w.done)
		for {
			wake, err := w.sw.Wait(-1)
			if err != nil {
				t.Error(err)
			}
			if wake == ring.WakeWatch {
				bell.Drain()
				if f := <-w.todo; f != nil {
					f()
				} else {
					return
				}
			}
			w.sw.Round()
		}
	}()
	t.Cleanup(func() {
		bell.Ring()
		w.todo <- nil
		<-w.done
		bell.Close()
	})
	return w
}

// do runs f between two rounds.
func (w *worker) do(f func()) {
	done := make(chan struct{})
	w.bell.Ring()
	w.todo <- func() { f(); close(done) }
	<-done
}

// backend is a vhost-user device of one queue pair that is a port of a switch.
type backend struct {
	w        *worker
	cfg      PortConfig
	mem      *ring.Memory
	maps     [][]byte
	queues   map[int]vhostuser.QueueState
	features atomic.Uint64
	lastIdx  []uint16
}

func (b *backend) Features() uint64 {
	return allOffloads | virtionet.FeatureMTU | virtionet.FeatureStatus
}
func (b *backend) ProtocolFeatures() uint64 { return vhostuser.ProtocolSupported }
func (b *backend) Queues() uint16           { return 2 }
func (b *backend) Config(offset, size uint32) ([]byte, error) {
	c := virtionet.Config{MAC: b.cfg.MAC, MTU: 1500, Status: virtionet.StatusLinkUp}
	e := c.Encode()
	space := append(e[:], make([]byte, vhostuser.MaxConfig)...)
	return space[offset:][:size], nil
}
func (b *backend) SetConfig(uint32, []byte) error { return errors.New("read-only") }
func (b *backend) SetMemory(regions []vhostuser.MemRegion) error {
	b.unmap()
	var rs []ring.Region
	for _, r := range regions {
		m, err := unix.Mmap(r.FD, int64(r.Offset), int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		b.maps = append(b.maps, m)
		rs = append(rs, ring.Region{Base: r.GPA, Mem: m})
	}
	var err error
	b.mem, err = ring.NewMemory(rs...)
	return err
}
func (b *backend) unmap() {
	for _, m := range b.maps {
		unix.Munmap(m)
	}
	b.maps = nil
}
func (b *backend) SetInflight(vhostuser.InflightArea) error { return nil }

// Start attaches the port once both queues are there.
func (b *backend) Start(q vhostuser.QueueState) (err error) {
	b.queues[q.Index] = q
	if len(b.queues) < 2 {
		return nil
	}
	c := Client{ID: 1, Config: b.cfg, Features: q.Ring.Features, Memory: b.mem}
	for i := range 2 {
		q := b.queues[i]
		c.Queues = append(c.Queues, Queue{Queue: q.Ring, Kick: ring.DoorbellOf(q.Kick), Call: ring.DoorbellOf(q.Call)})
	}
	b.features.Store(q.Ring.Features)
	b.w.do(func() { err = b.w.sw.Attach(c) })
	return err
}

// SetCall attaches anew, with the new doorbell.
func (b *backend) SetCall(index, call int) error {
	q := b.queues[index]
	q.Call = call
	if len(b.queues) == 2 {
		b.w.do(func() { b.w.sw.Detach(1) })
	}
	delete(b.queues, index)
	return b.Start(q)
}
func (b *backend) Stop(index int) (uint16, error) {
	if len(b.queues) == 2 {
		b.w.do(func() { b.lastIdx = b.w.sw.Detach(1) })
	}
	delete(b.queues, index)
	if b.lastIdx == nil {
		return 0, nil
	}
	return b.lastIdx[index], nil
}
func (b *backend) Disconnected(error) { b.unmap() }

// TestQEMUClient: the network boot program in the ROM of QEMU's network card, whose virtio driver nobody here wrote, gets its address
// from the switch, by way of vhost-user.
func TestQEMUClient(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("SKIPPED: qemu-system-x86_64 is not installed (Debian package qemu-system-x86):", err)
	}
	if m, _ := filepath.Glob("/usr/lib/ipxe/qemu/pxe-virtio.rom"); len(m) == 0 {
		t.Skip("SKIPPED: no network boot ROM (Debian package ipxe-qemu)")
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := &backend{w: newWorker(t), cfg: portAt(1, 0), queues: map[int]vhostuser.QueueState{}}
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = vhostuser.NewBackend(c.(*net.UnixConn), b).Serve(context.Background())
		}
		served <- err
	}()
	cmd := exec.Command(qemu, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,memory-backend=m0,vmport=off", "-m", "64", "-object", "memory-backend-memfd,id=m0,size=64M,share=on",
		"-chardev", "socket,id=c,path="+path, "-netdev", "vhost-user,id=n,chardev=c",
		"-device", "virtio-net-pci,netdev=n,disable-legacy=on,bootindex=0,mac="+b.cfg.MAC.String())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	begin := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var c Counters
	for c.RxPackets < 2 {
		select {
		case err := <-ended:
			t.Fatalf("QEMU ended: %v\n%s", err, out.String())
		case err := <-served:
			cmd.Process.Kill()
			t.Fatalf("the session ended: %v\n%s", err, out.String())
		case <-tick.C:
		}
		b.w.do(func() {
			c, _ = b.w.sw.Counters(1)
			for _, d := range b.w.sw.Deaths {
				t.Error(d)
			}
		})
		if time.Since(begin) > 40*time.Second {
			cmd.Process.Kill()
			t.Fatalf("no address after %v: %v\n%s", time.Since(begin), c.Map(), out.String())
		}
	}
	t.Logf("offer and acknowledgement after %v, features %#x: %v", time.Since(begin).Round(time.Millisecond), b.features.Load(), c.Map())
	cmd.Process.Kill()
	<-ended
	if err := <-served; err != nil {
		t.Log("session:", err)
	}
}
