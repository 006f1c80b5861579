package daemon

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
)

// vuClient is a vhost-user client with one queue, of which only the indices are used.
type vuClient struct {
	t          *testing.T
	mem        *os.File
	kick, call *os.File
	q          ring.Queue
	f          *vhostuser.Frontend
}

func newVUClient(t *testing.T, socket string) *vuClient {
	t.Helper()
	const base, size, queueSize = 1 << 30, 1 << 20, 64
	c := &vuClient{t: t}
	var err error
	if c.mem, err = hv.NewMemory("client", size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.mem.Close() })
	for _, f := range []**os.File{&c.kick, &c.call} {
		if *f, err = hv.NewDoorbell(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*f).Close() })
	}
	l, err := ring.LayoutOf(queueSize)
	if err != nil {
		t.Fatal(err)
	}
	c.q = l.At(base, 0)
	if c.f, err = vhostuser.Dial(ctx(t), socket, vhostuser.Options{Features: ring.FeatureVersion1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.f.Close() })
	if err := c.f.SetMemory([]vhostuser.MemRegion{{FD: rawFD(c.mem), Size: size, GPA: base, User: 1 << 40}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.f.SetInflight(1, queueSize); err != nil {
		t.Fatal(err)
	}
	if err := c.f.Start(0, vhostuser.QueueSetup{Ring: c.q, Kick: ring.DoorbellOf(rawFD(c.kick)), Call: ring.DoorbellOf(rawFD(c.call))}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *vuClient) index(addr uint64) uint16 {
	var b [2]byte
	_, _ = unix.Pread(rawFD(c.mem), b[:], int64(addr-1<<30)+2)
	return binary.LittleEndian.Uint16(b[:])
}

// request makes one request and waits for it.
func (c *vuClient) request() {
	c.t.Helper()
	next := c.index(c.q.Avail) + 1
	_, _ = unix.Pwrite(rawFD(c.mem), binary.LittleEndian.AppendUint16(nil, next), int64(c.q.Avail-1<<30)+2)
	_, _ = unix.Write(rawFD(c.kick), binary.NativeEndian.AppendUint64(nil, 1))
	eventually(c.t, "request completed", func() bool { return c.index(c.q.Used) == next })
}

func TestPortal(t *testing.T) {
	r := newRig(t)
	port := filepath.Join(os.Getenv("GRAIL_LIBEXEC"), "grailport")
	build := exec.Command("go", "build", "-o", port, "github.com/grailos/grail/hv/grailport")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := build.CombinedOutput(); err != nil {
		t.Skipf("cannot build grailport: %v\n%s", err, b)
	}
	path := diskFile(t)
	d, err := r.client.CreateDriver(ctx(t), api.CreateDriver{Config: api.DriverConfig{Name: "blk0", Type: "blk", Socket: true,
		Engine: hv.EngineProcess, MemoryBytes: 64 << 20, Disks: []api.Disk{{ID: "d", Path: path}}}})
	if err != nil {
		t.Fatal(err)
	}
	c := newVUClient(t, d.Disks[0].Socket)
	c.request()
	ready := func(generation int) func() bool {
		return func() bool {
			d, _ = r.client.Driver(ctx(t), "blk0")
			return d.State == api.Ready && d.Generation == generation && len(d.Clients) == 1 && d.Clients[0].Attached
		}
	}
	for i, how := range []string{"kill", "hang"} {
		if _, err := r.client.CrashDriver(ctx(t), "blk0", how); err != nil {
			t.Fatal(err)
		}
		c.request()
		eventually(t, "recovered", ready(i+2))
	}
	// The next graild finds the client attached, and leaves it so.
	r.close()
	r.open()
	eventually(t, "adopted", ready(3))
	c.request()
	if err := unix.Kill(d.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.request()
	// A driver that is replaced while no graild runs.
	r.close()
	if err := unix.Kill(mustDriverPID(t, r), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	c.request()
	eventually(t, "replaced", ready(5))

	// A client that leaves is detached; one that leaves while no graild runs, by the next one.
	other := newVUClient(t, d.Disks[0].Socket)
	other.request()
	if _, err := other.f.Stop(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one left", ready(5))
	r.close()
	done := make(chan error)
	go func() {
		_, err := c.f.Stop(0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("the queue was stopped although nobody could tell the driver: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	r.open()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "none left", func() bool {
		d, _ = r.client.Driver(ctx(t), "blk0")
		return len(d.Clients) == 0 && d.Status != nil && len(d.Status.Attached) == 0
	})

	// A portal that dies takes its clients along; the next one serves new ones on the same socket.
	last := newVUClient(t, d.Disks[0].Socket)
	last.request()
	killPortal(t, r)
	eventually(t, "disconnected", last.f.Disconnected)
	eventually(t, "a new portal", func() bool {
		f, err := vhostuser.Dial(context.Background(), d.Disks[0].Socket, vhostuser.Options{Features: ring.FeatureVersion1})
		if err == nil {
			f.Close()
		}
		return err == nil
	})
	newVUClient(t, d.Disks[0].Socket).request()
	eventually(t, "only the new client", ready(5))
}

// mustDriverPID finds the driver's process while no graild runs.
func mustDriverPID(t *testing.T, r *rig) int {
	t.Helper()
	s := openStore(t, r.dirs)
	defer s.Close()
	list, err := s.Drivers()
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	return list[0].Process.PID
}

func killPortal(t *testing.T, r *rig) {
	t.Helper()
	dr, err := r.d.driver("blk0")
	if err != nil {
		t.Fatal(err)
	}
	dr.mu.Lock()
	p := dr.portal
	dr.mu.Unlock()
	if err := p.proc.Kill(); err != nil {
		t.Fatal(err)
	}
}
