package vfs

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// interesting arguments: edges of every type, descriptors, addresses that hold something.
var interesting = []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 100, 255, 256, 4095, 4096, 4097, 65536, MaxFDs - 1, MaxFDs, 1 << 31, 1<<31 - 1, 1<<32 - 1, 1 << 32,
	1 << 40, 1 << 62, 1<<63 - 1, 1 << 63, ^uint64(0), ^uint64(0) - 1, ^uint64(99), fakeBase, fakeBase + 64, fakeBase + 128, fakeBase + 4096, fakeBase + 1<<20 - 8,
	fakeBase + 1<<20, fakeBase - 1, unix.O_CREAT | unix.O_RDWR, unix.O_DIRECTORY, unix.O_CREAT | unix.O_WRONLY | unix.O_APPEND, 0xffffffffffffff9c}

// calls are the numbers that the table serves, most of them.
var calls = func() []uint64 {
	var list []uint64
	for nr := range uint64(470) {
		list = append(list, nr)
	}
	for range 40 { // as often as a tenth of the rest
		list = append(list, abi.SysDevIO, abi.SysCaps)
	}
	return list
}()

func fuzzGuest(t testing.TB, limit time.Duration) *guest {
	bell, err := hv.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	mem, err := hv.NewMemory("fuzz", 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	echo, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(echo[0])
	t.Cleanup(func() { unix.Close(echo[1]) })
	cfg := bare()
	cfg.TmpLimit = 1 << 20
	cfg.Caps = []hv.CapSpec{
		{Kind: abi.CapControl, FD: -1},
		{Kind: abi.CapDevice, Rights: rw, FD: int(mem.Fd()), Size: 1 << 16},
		{Kind: abi.CapKick, Rights: rw, FD: int(bell.Fd())},
		{Kind: abi.CapGrant, Rights: rw, FD: int(mem.Fd()), Size: 1 << 16},
		{Kind: abi.CapPacket, Rights: rw, FD: echo[0]},
	}
	g := newGuest(t, cfg, true)
	g.mem.b = make([]byte, 1<<20)
	g.c.Wait = pollWaiter{limit: limit}
	for i, s := range []string{"/tmp/a", "/tmp/d/b", "/dev/zero", "../tmp/./a", "/proc/self/fd/3", "/tmp/d"} {
		copy(g.mem.b[64*i:], s)
	}
	return g
}

// settle checks what must hold after any calls, and closes everything.
func (g *guest) settle() {
	g.tb.Helper()
	g.t.tree.arena.mu.Lock()
	used, limit := g.t.tree.arena.used, g.t.tree.arena.limit
	g.t.tree.arena.mu.Unlock()
	if used > limit {
		g.tb.Fatalf("/tmp uses %d of %d bytes", used, limit)
	}
	g.ok(unix.SYS_CLOSE_RANGE, 0, 1<<32-1, 0)
	g.ok(unix.SYS_CHDIR, g.str("/"))
	g.emptyTmp()
	for i, s := range g.t.slots {
		if s.f != nil {
			g.tb.Fatalf("descriptor %d is still open", i)
		}
	}
}

// Random calls: no panic, no descriptor left in the host, no more memory than allowed.
func TestRandomCalls(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	newGuest(t, bare(), true)
	before := openFDs(t)
	for range 6 {
		t.Run("", func(t *testing.T) {
			g := fuzzGuest(t, time.Microsecond)
			for range 20000 {
				if r.IntN(50) == 0 { // scribble
					at := r.IntN(len(g.mem.b) - 64)
					for i := range 64 {
						g.mem.b[at+i] = byte(r.Uint32())
					}
				}
				if r.IntN(100) == 0 {
					binary.LittleEndian.PutUint64(g.mem.b[8*r.IntN(1000):], interesting[r.IntN(len(interesting))])
				}
				var a [6]uint64
				for i := range a {
					a[i] = interesting[r.IntN(len(interesting))]
				}
				g.t.Syscall(g.c, calls[r.IntN(len(calls))], a)
				if r.IntN(5000) == 0 {
					if m, e := g.t.Map(int32(a[0]), a[1], a[2], int(a[3]), int(a[4])); e == 0 {
						m.Release()
					}
				}
			}
			g.settle()
		})
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d host descriptors are open, %d before", n, before)
	}
}

// FuzzSyscall runs a program of calls: each is a byte for the number, six for arguments, over memory that the
// rest of the input fills.
func FuzzSyscall(f *testing.F) {
	f.Add([]byte{5, 0, 0, 0, 0, 0, 0, 0}, []byte("/tmp/a\x00"))
	f.Add([]byte{2, 31, 38, 0, 0, 0, 0, 1, 7, 32, 10, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 82, 31, 32, 0, 0, 0, 0}, []byte("/tmp/a\x00"))
	f.Add([]byte{255, 31, 2, 0, 0, 0, 0, 254, 31, 15, 0, 0, 0, 0}, make([]byte, 200))
	f.Fuzz(func(t *testing.T, prog, mem []byte) {
		g := fuzzGuest(t, time.Microsecond)
		copy(g.mem.b, mem)
		for n := 0; len(prog) >= 7 && n < 1000; n++ {
			nr := uint64(prog[0])
			switch {
			case nr == 255:
				nr = abi.SysDevIO
			case nr == 254:
				nr = abi.SysCaps
			case nr >= 200:
				nr += 57 // openat and what follows
			}
			var a [6]uint64
			for i := range a {
				a[i] = interesting[int(prog[1+i])%len(interesting)]
			}
			g.t.Syscall(g.c, nr, a)
			prog = prog[7:]
		}
		g.settle()
	})
}
