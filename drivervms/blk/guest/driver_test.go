package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

const diskSize = 1 << 20

// memDevice is the device in memory.
type memDevice struct {
	mu sync.Mutex
	b  []byte
}

func (d *memDevice) Do(ops []serve.Op) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range ops {
		op := &ops[i]
		op.Result = int64(op.Length)
		at := op.Offset
		for _, s := range op.Segs {
			if op.Kind == abi.DevRead {
				copy(s, d.b[at:])
			} else {
				copy(d.b[at:], s)
			}
			at += uint64(len(s))
		}
	}
}

// host is hv's side of a driver that runs in this process: what are capabilities in a VM are descriptors here.
type host struct {
	t      *testing.T
	ch     *guest.Channel
	status []byte
	done   chan error
}

func newHost(t *testing.T) *host {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, ch: guest.NewChannel(fds[0]), status: make([]byte, 2*abi.StatusSize), done: make(chan error, 1)}
	dev := &memDevice{b: make([]byte, diskSize)}
	d := &driver{
		server: serve.New(dev, []serve.Disk{{Name: "disk", FD: 5, Size: diskSize}}, ring.PollerConfig{}),
		host:   &program.Host{Name: "blk", Channel: guest.NewChannel(fds[1]), Status: guest.NewStatus(h.status[:abi.StatusSize])},
		maps:   map[uint64]*program.Mapping{},
	}
	d.server.Watch(fds[1])
	go func() { h.done <- d.loop() }()
	t.Cleanup(func() {
		unix.Close(fds[0])
		if err := <-h.done; err != guest.ErrChannelClosed {
			t.Errorf("driver ended with %v", err)
		}
		unix.Close(fds[1])
	})
	return h
}

// call sends m and returns the text of the answer.
func (h *host) call(m abi.Message) string {
	h.t.Helper()
	if err := h.ch.Send(m); err != nil {
		h.t.Fatal(err)
	}
	got, err := h.ch.Receive()
	if err != nil || got.Type != abi.MsgDone || got.ID != m.ID {
		h.t.Fatalf("%+v, %v", got, err)
	}
	return got.Text
}

// stats asks for the counters of an attachment.
func (h *host) stats(id uint64) string {
	h.t.Helper()
	if err := h.ch.Send(abi.Message{Type: abi.MsgStats, ID: id}); err != nil {
		h.t.Fatal(err)
	}
	got, err := h.ch.Receive()
	if err != nil || got.Type != abi.MsgStats || got.ID != id {
		h.t.Fatalf("%+v, %v", got, err)
	}
	return got.Text
}

// disk makes a client's disk and what the driver is told of it.
func disk(t *testing.T) (*guest.Disk, *ring.Shared, *abi.Attach) {
	t.Helper()
	g := abi.DiskGrant{QueueSize: 16, Queues: 2}
	rings, used := abi.RingsBytes(2, 16), abi.UsedBytes(2)
	shared, err := ring.NewShared("grant", rings+used+1<<20)
	if err != nil {
		t.Fatal(err)
	}
	log, err := ring.NewShared("log", 2*ring.InflightBytes(16))
	if err != nil {
		t.Fatal(err)
	}
	a := &abi.Attach{
		Client: "vm", Disk: "disk", Features: guest.DiskFeatures | virtioblk.FeatureFlush,
		Regions: []abi.Region{
			{FD: int32(shared.FD()), Base: abi.RingsAt, Size: rings, ReadOnly: true},
			{FD: int32(shared.FD()), Base: abi.UsedAt, Size: used, Offset: rings},
			{FD: int32(shared.FD()), Base: abi.BuffersAt, Size: 1 << 20, Offset: rings + used},
		},
		LogFD: int32(log.FD()), LogSize: uint64(len(log.Mem)),
	}
	kick, call := map[int]ring.Doorbell{}, map[int]ring.Doorbell{}
	for i := range 2 {
		for _, m := range []map[int]ring.Doorbell{kick, call} {
			if m[i], err = ring.NewDoorbell(); err != nil {
				t.Fatal(err)
			}
		}
		q := abi.QueueAt(i, 16, 0)
		a.Queues = append(a.Queues, abi.Queue{
			Index: uint16(i), Size: 16, KickFD: int32(kick[i].FD()), CallFD: int32(call[i].FD()), Desc: q.Desc, Avail: q.Avail, Used: q.Used,
		})
	}
	var config [64]byte
	c := virtioblk.Config{Capacity: diskSize / 512}
	b := c.Encode()
	copy(config[:], b[:])
	g.Put(&config)
	d, err := guest.NewDisk("disk", guest.Split(shared.Mem, 2, 16), &config, false, kick, call)
	if err != nil {
		t.Fatal(err)
	}
	return d, shared, a
}

func TestDriver(t *testing.T) {
	h := newHost(t)
	var disks []*guest.Disk
	for id := range uint64(3) {
		d, _, a := disk(t)
		if text := h.call(abi.Message{Type: abi.MsgAttach, ID: id, Attach: a}); text != "" {
			t.Fatal(text)
		}
		if text := h.call(abi.Message{Type: abi.MsgAttach, ID: id, Attach: a}); text == "" {
			t.Error("the same attachment was taken twice")
		}
		disks = append(disks, d)
	}
	p, q := make([]byte, 300000/512*512), make([]byte, 300000/512*512)
	for i := range p {
		p[i] = byte(i >> 5)
	}
	if _, err := disks[0].WriteAt(p, 1024); err != nil {
		t.Fatal(err)
	}
	if _, err := disks[1].ReadAt(q, 1024); err != nil || !bytes.Equal(p, q) {
		t.Fatal("the other client reads something else:", err)
	}
	if err := disks[2].Flush(); err != nil {
		t.Fatal(err)
	}
	for id, want := range []string{`"writeBytes":299520,`, `"readBytes":299520,`, `"flushes":1,`, `{}`} {
		if got := h.stats(uint64(id)); !strings.Contains(got, want) {
			t.Errorf("attachment %d counted %s, want %s", id, got, want)
		}
	}
	if text := h.call(abi.Message{Type: abi.MsgDetach, ID: 0}); text != "" {
		t.Error(text)
	}
	if text := h.call(abi.Message{Type: abi.MsgDetach, ID: 0}); text != "" {
		t.Error(text)
	}
	if _, err := disks[1].ReadAt(q, 0); err != nil {
		t.Error(err)
	}
	if err := h.ch.Send(abi.Message{Type: "unknown"}); err != nil {
		t.Fatal(err)
	}
	if h.status[abi.StatusBeat] == 0 || h.status[abi.StatusRequests] == 0 || h.status[abi.StatusBytes+2] == 0 {
		t.Error("the status page does not move:", h.status[:24])
	}
}

func TestRefusedAttachments(t *testing.T) {
	h := newHost(t)
	for i, c := range []struct {
		name   string
		change func(*abi.Attach)
	}{
		{"no regions", func(a *abi.Attach) { a.Regions = nil }},
		{"too many regions", func(a *abi.Attach) { a.Regions = make([]abi.Region, program.MaxRegions+1) }},
		{"region of nothing", func(a *abi.Attach) { a.Regions[0].Size = 0 }},
		{"enormous region", func(a *abi.Attach) { a.Regions[0].Size = 1 << 63 }},
		{"region that is no memory", func(a *abi.Attach) { a.Regions[0].FD = -1 }},
		{"overlapping regions", func(a *abi.Attach) { a.Regions = append(a.Regions, a.Regions[0]) }},
		{"another disk", func(a *abi.Attach) { a.Disk = "other" }},
		{"ring outside", func(a *abi.Attach) { a.Queues[1].Used = 1 << 20 }},
		{"ring that wraps", func(a *abi.Attach) { a.Queues[1].Desc = ^uint64(15) }},
		{"odd size", func(a *abi.Attach) { a.Queues[0].Size = 15 }},
		{"no queues", func(a *abi.Attach) { a.Queues = nil }},
		{"short log", func(a *abi.Attach) { a.LogSize = ring.InflightBytes(16) }},
		{"queue beyond the log", func(a *abi.Attach) { a.Queues[0].Index = 65535 }},
		{"no log memory", func(a *abi.Attach) { a.LogFD = 9999 }},
	} {
		_, _, a := disk(t)
		c.change(a)
		if text := h.call(abi.Message{Type: abi.MsgAttach, ID: uint64(i), Attach: a}); text == "" {
			t.Error(c.name, "was accepted")
		}
	}
	if text := h.call(abi.Message{Type: abi.MsgAttach, ID: 99}); text == "" {
		t.Error("an attach without an attachment was accepted")
	}
}

// TestDeadClient breaks one client's ring: the host hears of it, and the other client is served.
func TestDeadClient(t *testing.T) {
	h := newHost(t)
	good, _, a := disk(t)
	if text := h.call(abi.Message{Type: abi.MsgAttach, ID: 1, Attach: a}); text != "" {
		t.Fatal(text)
	}
	_, mem, b := disk(t)
	b.Client = "evil"
	if text := h.call(abi.Message{Type: abi.MsgAttach, ID: 2, Attach: b}); text != "" {
		t.Fatal(text)
	}
	mem.Mem[b.Queues[0].Avail+3] = 0x80 // the available index jumps by 32,768
	ring.DoorbellOf(int(b.Queues[0].KickFD)).Ring()
	m, err := h.ch.Receive()
	if err != nil || m.Type != abi.MsgDead || m.ID != 2 || !strings.Contains(m.Text, "evil") {
		t.Fatal(m, err)
	}
	if _, err := good.ReadAt(make([]byte, 5000), 0); err != nil {
		t.Error(err)
	}
	if text := h.call(abi.Message{Type: abi.MsgDetach, ID: 2}); text != "" {
		t.Error(text)
	}
}

// TestMisbehave runs this test program anew, told to fault or to hang in one way or another.
func TestMisbehave(t *testing.T) {
	if how := os.Getenv("GRAIL_TEST_MISBEHAVE"); how != "" {
		fmt.Println("misbehaving")
		program.Misbehave(how, func() {})
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for how, want := range map[string]string{"fault": "segmentation violation", "hang": "quit", "deadlock": "quit"} {
		cmd := exec.Command(exe, "-test.run=^TestMisbehave$")
		cmd.Env = append(os.Environ(), "GRAIL_TEST_MISBEHAVE="+how)
		var out lockedBuffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if want == "quit" {
			select {
			case err := <-ended:
				t.Fatalf("%s: ended with %v:\n%s", how, err, out.String())
			case <-time.After(300 * time.Millisecond):
			}
			cmd.Process.Signal(unix.SIGQUIT)
		}
		if err := <-ended; err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %v:\n%s", how, err, out.String())
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
