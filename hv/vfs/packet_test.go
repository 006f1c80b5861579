package vfs

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// packetPair returns a packet socket for a guest, and its other end.
func packetPair(t testing.TB, kind int) (fd, peer int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
		t.Cleanup(func() { unix.Close(fd) })
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

// withPacket gives a guest the socket fd as descriptors 3 (all rights), 4 (to read) and 5 (to write).
func withPacket(fd int) Config {
	cfg := bare()
	for _, rights := range []uint32{rw, abi.RightRead, abi.RightWrite} {
		cfg.Caps = append(cfg.Caps, hv.CapSpec{Kind: abi.CapPacket, Name: "uplink", Rights: rights, FD: fd, Config: []byte{9}})
	}
	return cfg
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// next returns the packet that waits at the other end.
func next(t testing.TB, peer int) []byte {
	t.Helper()
	b := make([]byte, 1<<17)
	n, err := unix.Read(peer, b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func nothingAt(t testing.TB, peer int) {
	t.Helper()
	if n, err := unix.Read(peer, make([]byte, 1)); err != unix.EAGAIN {
		t.Fatalf("something waits: %d, %v", n, err)
	}
}

// Packets keep their bounds both ways, up to the longest, in pieces of the guest's memory or one.
func TestPacket(t *testing.T) {
	for _, kind := range []int{unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
		bothMemories(t, func(t *testing.T, lend bool) {
			fd, peer := packetPair(t, kind)
			g := newGuest(t, withPacket(fd), lend)
			if c := g.caps()[0]; c.Kind != abi.CapPacket || c.Name != "uplink" || c.Config[0] != 9 {
				t.Errorf("%+v", c)
			}
			const pieces = abi.MaxDevSegs
			for _, n := range []int{1, 12, 26, 1526, 4096, bounceSize, bounceSize + 1, abi.MaxPacket} {
				want := pattern(n)
				p := g.bytes(want)
				split := []vec{{p, 0}}
				for at, left := p, uint64(n); left > 0; {
					k := min(left, uint64(n/pieces+9))
					split = append(split, vec{at, k})
					at, left = at+k, left-k
				}
				split = split[:min(len(split), pieces)]
				got := g.devio(
					devReq{fd: 3, op: abi.DevWrite, off: ^uint64(0), n: 5, segs: []vec{{p, uint64(n)}}},
					devReq{fd: 5, op: abi.DevWrite, segs: split})
				if got[0] != int64(n) || got[1] != int64(n) {
					t.Fatalf("%d bytes: %v", n, got)
				}
				for range 2 {
					if b := next(t, peer); !bytes.Equal(b, want) {
						t.Fatalf("%d bytes became %d, or others", n, len(b))
					}
				}
				nothingAt(t, peer)

				q := g.alloc(abi.MaxPacket + 1)
				for _, r := range []devReq{
					{fd: 3, op: abi.DevRead, off: 1 << 63, segs: []vec{{q, abi.MaxPacket + 1}}},
					{fd: 4, op: abi.DevRead, segs: []vec{{q, 1}, {q + 1, 0}, {q + 1, 9000}, {q + 9001, 70000}}},
				} {
					clear(g.view(q, n))
					unix.Write(peer, want)
					if got := g.devio(r, r); got[0] != int64(n) || got[1] != -int64(unix.EAGAIN) {
						t.Fatalf("%d bytes: %v", n, got)
					}
					if !bytes.Equal(g.view(q, n), want) {
						t.Fatalf("%d bytes came as others", n)
					}
				}
			}
			// By ordinary calls.
			p := g.bytes([]byte("packet"))
			g.ok(unix.SYS_WRITE, 3, p, 6)
			if b := next(t, peer); string(b) != "packet" {
				t.Errorf("%q", b)
			}
			unix.Write(peer, []byte("one"))
			unix.Write(peer, []byte("another"))
			if a, b := g.read(3, 100), g.read(3, 100); a != "one" || b != "another" {
				t.Errorf("%q, %q", a, b)
			}
		})
	}
}

// Nothing blocks, and readiness shows.
func TestPacketReadiness(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		fd, peer := packetPair(t, unix.SOCK_SEQPACKET)
		g := newGuest(t, withPacket(fd), lend)
		p := g.alloc(4096)
		if fl := g.ok(unix.SYS_FCNTL, 3, unix.F_GETFL); fl&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x", fl)
		}
		g.ok(unix.SYS_FCNTL, 3, unix.F_SETFL, 0) // the guest's flag does not matter
		g.fails(unix.EAGAIN, unix.SYS_READ, 3, p, 100)
		poll := g.bytes([]byte{3, 0, 0, 0, unix.POLLIN, 0, 0, 0})
		if n := g.ok(unix.SYS_POLL, poll, 1, 0); n != 0 {
			t.Error("ready with nothing there")
		}
		unix.Write(peer, []byte("x"))
		if n := g.ok(abi.SysWait, poll, 1, ^uint64(0)); n != 1 {
			t.Error("not ready")
		}
		if s := g.read(3, 10); s != "x" { // SysWait drains doorbells alone
			t.Errorf("%q", s)
		}
		// A packet that is longer than its buffer is cut off, and no part of it comes later.
		unix.Write(peer, []byte("long packet"))
		if s := g.read(3, 4); s != "long" {
			t.Errorf("%q", s)
		}
		g.fails(unix.EAGAIN, unix.SYS_READ, 3, p, 100)
		// A peer that reads nothing.
		full := 0
		for ; full < 1<<20; full++ {
			if got := g.devio(devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 4096}}})[0]; got != 4096 {
				if got != -int64(unix.EAGAIN) {
					t.Fatalf("%d", got)
				}
				break
			}
		}
		for range full {
			next(t, peer)
		}
		nothingAt(t, peer)
	})
}

func TestPacketHostile(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		fd, peer := packetPair(t, unix.SOCK_SEQPACKET)
		g := newGuest(t, withPacket(fd), lend)
		p := g.alloc(1 << 20)
		one := []vec{{p, 100}}
		for _, tc := range []struct {
			what string
			r    devReq
			want unix.Errno
		}{
			{"write without the right", devReq{fd: 4, op: abi.DevWrite, segs: one}, unix.EBADF},
			{"read without the right", devReq{fd: 5, op: abi.DevRead, segs: one}, unix.EBADF},
			{"flush", devReq{fd: 3, op: abi.DevFlush}, unix.EINVAL},
			{"discard", devReq{fd: 3, op: abi.DevDiscard, n: 1}, unix.EINVAL},
			{"zeroes", devReq{fd: 3, op: abi.DevWriteZeroes, n: 1}, unix.EINVAL},
			{"unknown operation", devReq{fd: 3, op: 99, segs: one}, unix.EINVAL},
			{"nothing", devReq{fd: 3, op: abi.DevWrite}, unix.EINVAL},
			{"nothing in segments", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 0}, {16, 0}}}, unix.EINVAL},
			{"a byte too many", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, abi.MaxPacket}, {p, 1}}}, unix.EMSGSIZE},
			{"much too many", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 1 << 29}}}, unix.EMSGSIZE},
			{"enormous", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 1 << 62}}}, unix.EINVAL},
			{"wrapping lengths", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 512}, {p, ^uint64(0) - 511}}}, unix.EINVAL},
			{"enormous read", devReq{fd: 3, segs: []vec{{p, ^uint64(0)}}}, unix.EINVAL},
			{"segments nowhere", devReq{fd: 3, op: abi.DevWrite, rawSeg: 16, nsegs: 1}, unix.EFAULT},
			{"too many segments", devReq{fd: 3, op: abi.DevWrite, rawSeg: p, nsegs: abi.MaxDevSegs + 1}, unix.EINVAL},
			{"2^32-1 segments", devReq{fd: 3, op: abi.DevWrite, rawSeg: p, nsegs: 1<<32 - 1}, unix.EINVAL},
			{"memory nowhere", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{16, 100}}}, unix.EFAULT},
			{"memory that wraps", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{^uint64(0) - 10, 100}}}, unix.EFAULT},
			{"the half nowhere", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 100}, {16, 100}}}, unix.EFAULT},
			{"half over the end", devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 100}, {fakeBase + 4<<20 - 50, 100}}}, unix.EFAULT},
		} {
			if got := g.devio(tc.r)[0]; got != -int64(tc.want) {
				t.Errorf("%s: %d, want %v", tc.what, got, tc.want)
			}
			nothingAt(t, peer) // not even a part
		}
		// To read into memory that is not there: no part of the packet comes later, and nothing beside the memory is written.
		for _, segs := range [][]vec{{{16, 100}}, {{p, 4}, {16, 100}}} {
			unix.Write(peer, []byte("packet"))
			if got := g.devio(devReq{fd: 3, segs: segs})[0]; got != -int64(unix.EFAULT) {
				t.Errorf("%v: %d", segs, got)
			}
			for g.devio(devReq{fd: 3, segs: one})[0] > 0 {
			}
		}
		g.fails(unix.EBADF, unix.SYS_WRITE, 4, p, 1)
		g.fails(unix.EBADF, unix.SYS_READ, 5, p, 1)
		g.fails(unix.ESPIPE, unix.SYS_PWRITE64, 3, p, 1, 0)
		g.fails(unix.ESPIPE, unix.SYS_LSEEK, 3, 0, 0)
		g.fails(unix.EINVAL, unix.SYS_FSYNC, 3)
		g.fails(unix.EMSGSIZE, unix.SYS_WRITE, 3, p, abi.MaxPacket+1)
		g.fails(unix.EINVAL, unix.SYS_WRITE, 3, p, 0)
		if _, e := g.t.Map(3, 0, 4096, unix.PROT_READ, unix.MAP_SHARED); e != unix.ENODEV {
			t.Errorf("map: %v", e)
		}
		// A packet in more pieces than the host takes at once stays one.
		const most = 20*3001 + (maxIov-20)*2
		var iov []byte
		for range 20 {
			iov = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(iov, p), 3001) // lent in two pieces
		}
		for len(iov) < 16*maxIov {
			iov = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(iov, p), 2)
		}
		if n := g.ok(unix.SYS_WRITEV, 3, g.bytes(iov), maxIov); n != most || len(next(t, peer)) != int(most) {
			t.Errorf("%d bytes", n)
		}
		// The peer goes.
		if err := unix.Shutdown(peer, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		if got := g.devio(devReq{fd: 3, segs: one}, devReq{fd: 3, op: abi.DevWrite, segs: one}); got[0] != 0 || got[1] != -int64(unix.EPIPE) {
			t.Errorf("%v", got)
		}
	})
}

// What keeps no packets apart is no packet device.
func TestNoPacket(t *testing.T) {
	before := openFDs(t)
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{stream[0], int(dir.Fd()), hostFile(t, []byte("x")), doorbell(t), -1, 9999} {
		cfg := bare()
		cfg.Caps = []hv.CapSpec{{Kind: abi.CapPacket, Rights: rw, FD: fd}}
		if tab, err := New(cfg); err == nil {
			t.Errorf("descriptor %d was taken", fd)
			tab.Close()
		}
	}
	unix.Close(stream[0])
	unix.Close(stream[1])
	dir.Close()
	if n := openFDs(t); n > before+2 { // the file and the doorbell are closed at the end
		t.Errorf("%d descriptors are open, %d before", n, before)
	}
}

// A net port's grant is mapped as a disk's: writable whatever its rights.
func TestNetGrant(t *testing.T) {
	cfg := bare()
	cfg.Caps = []hv.CapSpec{{Kind: abi.CapNet, Name: "nic", Rights: abi.RightRead, FD: grant(t, 8192), Size: 8192}}
	g := newGuest(t, cfg, true)
	m, e := g.t.Map(3, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if e != 0 || !m.Writable || m.Kind != abi.CapNet {
		t.Fatalf("%+v, %v", m, e)
	}
	m.Release()
	if _, e := g.t.Map(3, 0, 3*4096, unix.PROT_READ, unix.MAP_SHARED); e != unix.EINVAL {
		t.Errorf("beyond the end: %v", e)
	}
}

// Random packets, both ways, in random pieces, against what they should be.
func TestRandomPackets(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	bothMemories(t, func(t *testing.T, lend bool) {
		fd, peer := packetPair(t, unix.SOCK_SEQPACKET)
		g := newGuest(t, withPacket(fd), lend)
		all := pattern(2 << 20)
		base := g.bytes(all)
		for range 300 {
			var segs []vec
			var want []byte
			for range 1 + r.IntN(20) {
				at, n := r.IntN(1<<20), r.IntN(1+r.IntN(6000))
				segs, want = append(segs, vec{base + uint64(at), uint64(n)}), append(want, all[at:at+n]...)
			}
			result := int64(len(want))
			switch {
			case len(want) == 0:
				result = -int64(unix.EINVAL)
			case len(want) > abi.MaxPacket:
				result = -int64(unix.EMSGSIZE)
			}
			if got := g.devio(devReq{fd: 3, op: abi.DevWrite, segs: segs})[0]; got != result {
				t.Fatalf("%d, want %d", got, result)
			}
			if result > 0 && !bytes.Equal(next(t, peer), want) {
				t.Fatal("another packet")
			}
			// And back, into a place of its own, in two pieces.
			n := 1 + r.IntN(9000)
			cut := r.IntN(n + 100)
			q := g.alloc(n + 100)
			unix.Write(peer, all[:n])
			if got := g.devio(devReq{fd: 3, segs: []vec{{q, uint64(cut)}, {q + uint64(cut), uint64(n + 100 - cut)}}})[0]; got != int64(n) || !bytes.Equal(g.view(q, n), all[:n]) {
				t.Fatalf("%d of %d bytes, or others", got, n)
			}
			g.top = uint64(len(all) + 64)
			copy(g.mem.b[base-fakeBase:], all)
		}
	})
}
