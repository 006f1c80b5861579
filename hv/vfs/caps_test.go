package vfs

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

func grant(t *testing.T, size uint64) int {
	t.Helper()
	f, err := hv.NewMemory("grant", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func doorbell(t *testing.T) int {
	t.Helper()
	f, err := hv.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

const rw = abi.RightRead | abi.RightWrite

func TestCapTable(t *testing.T) {
	cfg := bare()
	bell, mem := doorbell(t), grant(t, 8192)
	cfg.Caps = []hv.CapSpec{
		{Kind: abi.CapDisk, Name: "disk", Rights: rw, FD: mem, Size: 8192, Config: []byte{1, 2, 3}},
		{Kind: abi.CapKick, Name: "disk", Index: 1, Rights: abi.RightWrite, FD: bell},
		{Kind: abi.CapControl, FD: -1},
	}
	g := newGuest(t, cfg, true)
	caps := g.caps()
	if len(caps) != 3 || caps[0].FD != 3 || caps[1].FD != 4 || caps[2].FD != 5 {
		t.Fatalf("%+v", caps)
	}
	if c := caps[0]; c.Kind != abi.CapDisk || c.Name != "disk" || c.Size != 8192 || c.Config[2] != 3 || c.Rights != rw {
		t.Errorf("%+v", c)
	}
	if caps[1].Index != 1 || caps[2].Kind != abi.CapControl {
		t.Errorf("%+v", caps[1:])
	}
	// A short buffer gets the front, the size is that of the whole.
	p := g.alloc(200)
	g.view(p, 200)[150] = 0xee
	if n := g.ok(abi.SysCaps, p, 150); n != 3*abi.CapSize || g.view(p, 200)[150] != 0xee {
		t.Errorf("%d bytes", n)
	}
	g.fails(unix.EFAULT, abi.SysCaps, 16, 1000)
	// What the guest closed is no capability any more, and what took its number is none either.
	g.ok(unix.SYS_CLOSE, 4)
	if fd := g.ok(unix.SYS_EVENTFD2, 0, 0); fd != 4 {
		t.Errorf("descriptor %d", fd)
	}
	if caps := g.caps(); len(caps) != 2 || caps[1].FD != 5 {
		t.Errorf("%+v", caps)
	}
	// The caller's descriptors stay the caller's.
	if _, err := unix.FcntlInt(uintptr(bell), unix.F_GETFD, 0); err != nil {
		t.Error(err)
	}
}

func TestBadCaps(t *testing.T) {
	mem := grant(t, 4096)
	before := openFDs(t)
	for _, s := range []hv.CapSpec{
		{Kind: abi.CapGrant, FD: -1, Size: 4096, Rights: rw},
		{Kind: abi.CapGrant, FD: 9999, Size: 4096, Rights: rw},
		{Kind: abi.CapGrant, FD: mem, Size: 4097, Rights: rw},
		{Kind: abi.CapGrant, FD: mem, Size: 0, Rights: rw},
		{Kind: abi.CapDevice, FD: mem, Size: 1 << 63, Rights: rw},
		{Kind: 99, FD: mem, Size: 4096},
		{Kind: abi.CapGrant, FD: mem, Size: 4096, Name: strings.Repeat("n", 41)},
		{Kind: abi.CapGrant, FD: mem, Size: 4096, Config: make([]byte, 65)},
	} {
		cfg := bare()
		cfg.Caps = []hv.CapSpec{{Kind: abi.CapGrant, FD: mem, Size: 4096, Rights: rw}, s}
		if tab, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", s)
			tab.Close()
		}
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors are open, %d before", n, before)
	}
}

func openFDs(t testing.TB) int {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestInstallAndRemove(t *testing.T) {
	g := newGuest(t, bare(), true)
	bell, mem := doorbell(t), grant(t, 8192)
	before := openFDs(t)
	list, err := g.t.InstallCaps(
		hv.CapSpec{Kind: abi.CapGrant, Rights: rw, FD: mem, Size: 8192},
		hv.CapSpec{Kind: abi.CapKick, Rights: abi.RightRead, FD: bell},
		hv.CapSpec{Kind: abi.CapCall, Rights: abi.RightWrite, FD: bell})
	if err != nil {
		t.Fatal(err)
	}
	fd := uint64(list[0].FD)
	kick, call := uint64(list[1].FD), uint64(list[2].FD)
	p := g.bytes([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	g.fails(unix.EBADF, unix.SYS_WRITE, kick, p, 8)
	g.fails(unix.EBADF, unix.SYS_READ, call, p, 8)
	g.ok(unix.SYS_WRITE, call, p, 8)
	g.ok(unix.SYS_READ, kick, p, 8)
	m, e := g.t.Map(list[0].FD, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if e != 0 || m.FD < 0 || m.Object != list[0].Object || m.Object == 0 || !m.Writable || m.Kind != abi.CapGrant {
		t.Fatalf("%+v, %v", m, e)
	}
	m.Release()
	// The guest hides a duplicate and lets another file take the number: the duplicate goes all the same.
	dup := g.ok(unix.SYS_DUP, fd)
	g.ok(unix.SYS_CLOSE, fd)
	other := g.open("/dev/null", 0)
	if other != fd {
		t.Fatalf("number %d was not reused", fd)
	}
	kdup := g.ok(unix.SYS_DUP, kick)
	ep := g.ok(unix.SYS_EPOLL_CREATE1, 0)
	g.ok(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, kdup, g.bytes([]byte{unix.EPOLLIN, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}))
	g.t.Remove(list...)
	g.fails(unix.EBADF, unix.SYS_FSTAT, dup, p)
	g.fails(unix.EBADF, unix.SYS_READ, kick, p, 8)
	g.fails(unix.EBADF, unix.SYS_READ, kdup, p, 8)
	g.ok(unix.SYS_READ, other, p, 8)
	// The doorbell lives on elsewhere, but the guest hears no more of it.
	unix.Write(bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if n := g.ok(unix.SYS_EPOLL_WAIT, ep, g.alloc(12), 1, 0); n != 0 {
		t.Error("an event of a withdrawn doorbell")
	}
	g.t.Remove(list...) // twice is no harm
	g.ok(unix.SYS_CLOSE, ep)
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors are open, %d before", n, before)
	}
}

// TestWaitRings: SysWait rings what it is asked to before it waits, and only what the guest may ring.
func TestWaitRings(t *testing.T) {
	bell, quiet := doorbell(t), doorbell(t)
	g := newGuest(t, bare(), true)
	list, err := g.t.InstallCaps(
		hv.CapSpec{Kind: abi.CapCall, Rights: abi.RightWrite, FD: bell},
		hv.CapSpec{Kind: abi.CapKick, Rights: abi.RightRead, FD: bell},
		hv.CapSpec{Kind: abi.CapKick, Rights: abi.RightRead, FD: quiet})
	if err != nil {
		t.Fatal(err)
	}
	call, kick, deaf := int32(list[0].FD), int32(list[1].FD), int32(list[2].FD)
	null := int32(g.open("/dev/null", unix.O_RDWR))
	p := g.pollfds(call, abi.PollRing, deaf, abi.PollRing, null, abi.PollRing, 500, abi.PollRing, -1, abi.PollRing, call, abi.PollRing, kick, unix.POLLIN)
	rev := func(i int) uint16 { return binary.LittleEndian.Uint16(g.view(p+uint64(8*i)+6, 2)) }
	// The other end of the doorbell rung here is waited for here: without the ring this would last for ever.
	if n := g.ok(abi.SysWait, p, 1, 0); n != 0 {
		t.Errorf("%d ready", n)
	}
	both := g.pollfds(call, abi.PollRing, kick, unix.POLLIN)
	if n := g.ok(abi.SysWait, both, 2, ^uint64(0)); n != 1 || binary.LittleEndian.Uint16(g.view(both+8+6, 2)) != unix.POLLIN {
		t.Errorf("%d ready", n)
	}
	if n := g.ok(abi.SysWait, p, 7, 0); n != 4 {
		t.Errorf("%d ready", n)
	}
	for i, want := range []uint16{0, unix.POLLNVAL, unix.POLLNVAL, unix.POLLNVAL, 0, 0, unix.POLLIN} {
		if rev(i) != want {
			t.Errorf("revents %d is %#x, want %#x", i, rev(i), want)
		}
	}
	var b [8]byte
	if n, err := unix.Read(bell, b[:]); err != unix.EAGAIN {
		t.Errorf("not drained: %d, %v", n, err)
	}
	g.ok(unix.SYS_POLL, both, 2, 0) // to poll(2) the event means nothing
	if n, err := unix.Read(bell, b[:]); err != unix.EAGAIN {
		t.Errorf("poll rang: %d, %v", n, err)
	}
	// One that its peer has filled, and made blocking, has rung already.
	unix.Write(bell, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	if err := unix.SetNonblock(bell, false); err != nil {
		t.Fatal(err)
	}
	if n := g.ok(abi.SysWait, both, 2, ^uint64(0)); n != 1 {
		t.Errorf("%d ready", n)
	}
}

// A peer that makes its end of a doorbell blocking cannot hang the guest's thread in the host.
func TestHostileDoorbell(t *testing.T) {
	bell := doorbell(t)
	g := newGuest(t, bare(), true)
	list, err := g.t.InstallCaps(hv.CapSpec{Kind: abi.CapKick, Rights: abi.RightRead, FD: bell})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(bell, false); err != nil {
		t.Fatal(err)
	}
	fd := uint64(list[0].FD)
	g.ok(unix.SYS_FCNTL, fd, unix.F_SETFL, unix.O_NONBLOCK)
	g.fails(unix.EAGAIN, unix.SYS_READ, fd, g.alloc(8), 8)
}

func TestMap(t *testing.T) {
	cfg := withFiles(t, archive(t, []member{{name: "f", body: "contents"}}))
	ro, wo := grant(t, 6000), grant(t, 4096)
	cfg.Caps = []hv.CapSpec{
		{Kind: abi.CapGrant, Rights: abi.RightRead, FD: ro, Size: 6000},
		{Kind: abi.CapStatus, Rights: rw, FD: wo, Size: 4096},
		{Kind: abi.CapLog, Rights: 0, FD: wo, Size: 4096},
		{Kind: abi.CapDevice, Rights: rw, FD: hostFile(t, make([]byte, 6144)), Size: 6144},
		{Kind: abi.CapDevice, Rights: abi.RightWrite, FD: hostFile(t, make([]byte, 4096)), Size: 4096},
		{Kind: abi.CapDevice, Rights: rw, FD: hostFile(t, make([]byte, 4096)), Size: maxMapped + 512},
	}
	g := newGuest(t, cfg, true)
	file := int32(g.open("/f", 0))
	tmp := int32(g.open("/tmp/f", unix.O_CREAT|unix.O_RDWR))
	g.write(uint64(tmp), "tmp contents")
	wronly := int32(g.open("/tmp/f", unix.O_WRONLY))
	zero := int32(g.open("/dev/zero", unix.O_RDWR))
	dir := int32(g.open("/", unix.O_DIRECTORY))
	const r, w, x = unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC
	for _, tc := range []struct {
		fd          int32
		off, n      uint64
		prot, flags int
		e           unix.Errno
	}{
		{3, 0, 4096, r, unix.MAP_SHARED, 0},
		{3, 4096, 4096, r, unix.MAP_SHARED, 0}, // the last page, in part
		{3, 0, 8192, r, unix.MAP_SHARED, 0},
		{3, 0, 8193, r, unix.MAP_SHARED, unix.EINVAL},
		{3, 8192, 1, r, unix.MAP_SHARED, unix.EINVAL},
		{3, 1 << 63, 1 << 63, r, unix.MAP_SHARED, unix.EOVERFLOW},
		{3, ^uint64(0) &^ 4095, 8192, r, unix.MAP_SHARED, unix.EOVERFLOW},
		{3, 100, 4096, r, unix.MAP_SHARED, unix.EINVAL},
		{3, 0, 0, r, unix.MAP_SHARED, unix.EINVAL},
		{3, 0, 4096, r | w, unix.MAP_SHARED, unix.EACCES},
		{3, 0, 4096, r | x, unix.MAP_SHARED, unix.EACCES},
		{3, 0, 4096, r, unix.MAP_PRIVATE, unix.EINVAL},
		{3, 0, 4096, r, 0, unix.EINVAL},
		{4, 0, 4096, r | w, unix.MAP_SHARED, 0},
		{5, 0, 4096, r, unix.MAP_SHARED, unix.EACCES},
		{6, 0, 4096, r, unix.MAP_SHARED, 0},
		{6, 4096, 4096, r, unix.MAP_SHARED, 0},
		{6, 4096, 4097, r, unix.MAP_SHARED, unix.EINVAL},
		{7, 0, 4096, r, unix.MAP_SHARED, unix.EACCES},
		{8, 0, 4096, r, unix.MAP_SHARED, unix.ENODEV},
		{6, 0, 4096, r | w, unix.MAP_SHARED, unix.EACCES},
		{6, 0, 4096, r | x, unix.MAP_SHARED, unix.EACCES},
		{6, 0, 4096, r, unix.MAP_PRIVATE, unix.EINVAL},
		{file, 0, 1 << 20, r | w, unix.MAP_PRIVATE, 0},
		{file, 0, 4096, r, unix.MAP_SHARED, 0},
		{file, 0, 4096, r | w, unix.MAP_SHARED, unix.ENODEV},
		{tmp, 0, 4096, r, unix.MAP_PRIVATE, 0},
		{tmp, 0, 4096, r, unix.MAP_SHARED, unix.ENODEV},
		{wronly, 0, 4096, r, unix.MAP_PRIVATE, unix.EACCES},
		{zero, 0, 4096, r | w, unix.MAP_PRIVATE, 0},
		{dir, 0, 4096, r, unix.MAP_PRIVATE, unix.ENODEV},
		{0, 0, 4096, r, unix.MAP_PRIVATE, unix.ENODEV},
		{1, 0, 4096, r, unix.MAP_PRIVATE, unix.EACCES},
		{-1, 0, 4096, r, unix.MAP_PRIVATE, unix.EBADF},
		{99, 0, 4096, r, unix.MAP_PRIVATE, unix.EBADF},
	} {
		m, e := g.t.Map(tc.fd, tc.off, tc.n, tc.prot, tc.flags)
		if e != tc.e {
			t.Errorf("%+v: %v", tc, e)
		}
		if e == 0 && (m.FD >= 0) == (m.Source != nil) {
			t.Errorf("%+v: %+v", tc, m)
		}
		m.Release()
		m.Release()
	}
	// Mappings of a device are parts of one: when its file's size has changed, there is no further one.
	if err := unix.Ftruncate(cfg.Caps[3].FD, 8192); err != nil {
		t.Fatal(err)
	}
	if _, e := g.t.Map(6, 0, 4096, r, unix.MAP_SHARED); e != unix.ENODEV {
		t.Errorf("device that has grown: %v", e)
	}
	m, _ := g.t.Map(file, 0, 4096, r, unix.MAP_PRIVATE)
	b := make([]byte, 20)
	if n, err := m.Source.ReadAt(b, 3); n != 5 || err != io.EOF || string(b[:n]) != "tents" {
		t.Errorf("%d %v %q", n, err, b)
	}
	if n, err := m.Source.ReadAt(b[:4], 0); n != 4 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if n, err := m.Source.ReadAt(b, 1<<40); n != 0 || err != io.EOF {
		t.Errorf("%d %v", n, err)
	}
	m.Release()
	m, _ = g.t.Map(tmp, 0, 4096, r, unix.MAP_PRIVATE)
	g.ok(unix.SYS_CLOSE, uint64(tmp))
	g.ok(unix.SYS_CLOSE, uint64(wronly))
	g.ok(unix.SYS_UNLINK, g.str("/tmp/f"))
	if n, _ := m.Source.ReadAt(b, 0); string(b[:n]) != "tmp contents" {
		t.Errorf("an unlinked file under a mapping: %q", b[:n])
	}
	m.Release()
	if g.t.tree.arena.used != 0 {
		t.Error("an unlinked, unmapped file still takes room")
	}
}

func TestControl(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		var got []abi.Message
		cfg := bare()
		cfg.OnMessage = func(m abi.Message) { got = append(got, m) }
		cfg.Caps = []hv.CapSpec{{Kind: abi.CapControl, Rights: rw, FD: -1}}
		g := newGuest(t, cfg, lend)
		p := g.pollfds(3, unix.POLLIN|unix.POLLOUT)
		g.ok(unix.SYS_POLL, p, 1, 0)
		if ev := g.u32(p+4) >> 16; ev != unix.POLLOUT {
			t.Errorf("revents %#x", ev)
		}
		g.ok(unix.SYS_FCNTL, 3, unix.F_SETFL, unix.O_NONBLOCK)
		g.fails(unix.EAGAIN, unix.SYS_READ, 3, g.alloc(100), 100)
		for id := range uint64(3) {
			if err := g.t.Control().Push(abi.Message{Type: abi.MsgAttach, ID: id + 1, Attach: &abi.Attach{Disk: "d"}}); err != nil {
				t.Fatal(err)
			}
		}
		g.fails(unix.EMSGSIZE, unix.SYS_READ, 3, g.alloc(10), 10)
		g.fails(unix.EFAULT, unix.SYS_READ, 3, 16, 16384)
		for id := range uint64(3) {
			g.ok(unix.SYS_POLL, p, 1, 0)
			if ev := g.u32(p+4) >> 16; ev != unix.POLLIN|unix.POLLOUT {
				t.Errorf("revents %#x", ev)
			}
			var m abi.Message
			if err := json.Unmarshal([]byte(g.read(3, abi.MaxMessage)), &m); err != nil || m.ID != id+1 || m.Attach.Disk != "d" {
				t.Errorf("%+v, %v", m, err)
			}
		}
		g.fails(unix.EAGAIN, unix.SYS_READ, 3, g.alloc(100), 100)
		g.write(3, `{"type":"ready"}`)
		g.write(3, `{"type":"done","id":7,"text":"no","attach":{"client":"x"}}`)
		if len(got) != 2 || got[0].Type != abi.MsgReady || got[1].ID != 7 || got[1].Attach != nil {
			t.Errorf("%+v", got)
		}
		for _, bad := range []string{"", "{", "[]", `{"type":1}`, `{"id":-1}`, `{"type":"` + strings.Repeat("x", 65) + `"}`} {
			g.fails(unix.EINVAL, unix.SYS_WRITE, 3, g.str(bad), uint64(len(bad)))
		}
		g.fails(unix.EMSGSIZE, unix.SYS_WRITE, 3, g.alloc(abi.MaxMessage+1), abi.MaxMessage+1)
		g.fails(unix.EFAULT, unix.SYS_WRITE, 3, 16, 10)
		for range maxQueued {
			if err := g.t.Control().Push(abi.Message{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.t.Control().Push(abi.Message{}); err != ErrControlFull {
			t.Errorf("a full channel: %v", err)
		}
		if err := g.t.Control().Push(abi.Message{Text: strings.Repeat("x", abi.MaxMessage)}); err != unix.EMSGSIZE {
			t.Errorf("a long message: %v", err)
		}
	})
}
