package vfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// devReq is one request as a guest writes it.
type devReq struct {
	fd     int32
	op     abi.DevOp
	flags  uint16
	off, n uint64
	segs   []vec
	rawSeg uint64 // address of the segments, when they are not to be written
	nsegs  uint32
}

// devio performs a batch and returns the results.
func (g *guest) devio(reqs ...devReq) []int64 {
	g.tb.Helper()
	p := g.devioBatch(reqs...)
	if n := g.ok(abi.SysDevIO, p, uint64(len(reqs))); n != uint64(len(reqs)) {
		g.tb.Fatalf("%d of %d requests", n, len(reqs))
	}
	out := make([]int64, len(reqs))
	for i := range out {
		out[i] = int64(binary.LittleEndian.Uint64(g.view(p+uint64(i)*abi.DevReqSize+40, 8)))
	}
	return out
}

func (g *guest) devioBatch(reqs ...devReq) uint64 {
	var wire []byte
	le := binary.LittleEndian
	for _, r := range reqs {
		segs, n := r.rawSeg, r.nsegs
		if segs == 0 {
			var b []byte
			for _, s := range r.segs {
				b = le.AppendUint64(le.AppendUint64(b, s.addr), s.n)
			}
			segs, n = g.bytes(b), uint32(len(r.segs))
		}
		wire = le.AppendUint32(wire, uint32(r.fd))
		wire = le.AppendUint16(wire, uint16(r.op))
		wire = le.AppendUint16(wire, r.flags)
		wire = le.AppendUint64(wire, r.off)
		wire = le.AppendUint64(wire, r.n)
		wire = le.AppendUint64(wire, segs)
		wire = le.AppendUint32(wire, n)
		wire = le.AppendUint32(wire, 0)
		wire = le.AppendUint64(wire, 0x5555)
	}
	return g.bytes(wire)
}

const devSize = 1 << 20

func withDevice(t testing.TB, rights uint32, file int, size uint64) Config {
	cfg := bare()
	cfg.Caps = []hv.CapSpec{{Kind: abi.CapDevice, Name: "disk", Rights: rights, FD: file, Size: size}}
	return cfg
}

func TestDevIO(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		file := hostFile(t, make([]byte, devSize))
		cfg := withDevice(t, rw, file, devSize)
		cfg.Busy = make([]byte, 8)
		g := newGuest(t, cfg, lend)
		a, b := g.bytes(bytes.Repeat([]byte("abcd"), 2500)), g.alloc(10000)
		got := g.devio(
			devReq{fd: 3, op: abi.DevWrite, off: 4096, segs: []vec{{a, 5000}, {a + 5000, 0}, {a + 5000, 5000}}},
			devReq{fd: 3, op: abi.DevFlush},
			devReq{fd: 3, op: abi.DevRead, off: 4096, segs: []vec{{b + 1000, 9000}, {b, 1000}}},
			devReq{fd: 3, op: abi.DevDiscard, off: 4096, n: 4096},
			devReq{fd: 3, op: abi.DevWriteZeroes, off: 8192, n: 100},
			devReq{fd: 3, op: abi.DevWriteZeroes, flags: abi.DevMayUnmap, off: 12288, n: 1808},
		)
		if s := fmt.Sprint(got); s != "[10000 0 10000 0 0 0]" {
			t.Errorf("results %s", s)
		}
		if !bytes.Equal(g.view(b+1000, 9000), g.view(a, 9000)) || !bytes.Equal(g.view(b, 1000), g.view(a+9000, 1000)) {
			t.Error("what was read is not what was written")
		}
		disk := make([]byte, devSize)
		unix.Pread(file, disk, 0)
		if want := append(make([]byte, 4096+100+4096), bytes.Repeat([]byte("abcd"), 999)...); !bytes.Equal(disk[:len(want)], want) || bytes.Trim(disk[len(want):], "\x00") != nil {
			t.Error("the disk holds something else")
		}
		if v := binary.LittleEndian.Uint64(cfg.Busy); v != 0 {
			t.Errorf("busy is %d", v)
		}
		if n, moved := g.t.DevStats(); n != 6 || moved != 20000 {
			t.Errorf("%d requests, %d bytes", n, moved)
		}
		// Ordinary calls on the device.
		g.ok(unix.SYS_PREAD64, 3, b, 4, 8392)
		if s := string(g.view(b, 4)); s != "\x00\x00\x00\x00" && s != "abcd" {
			t.Errorf("%q", s)
		}
		if n := g.ok(unix.SYS_LSEEK, 3, 0, unix.SEEK_END); n != devSize {
			t.Errorf("size %d", n)
		}
		if n := g.ok(unix.SYS_READ, 3, b, 10); n != 0 {
			t.Errorf("%d bytes at the end", n)
		}
		g.fails(unix.ENOSPC, unix.SYS_WRITE, 3, b, 10)
		g.ok(unix.SYS_LSEEK, 3, ^uint64(4), unix.SEEK_END) // 5 bytes before it
		if n := g.ok(unix.SYS_WRITE, 3, b, 10); n != 5 {
			t.Errorf("%d bytes up to the end", n)
		}
		g.ok(unix.SYS_FDATASYNC, 3)
		g.ok(unix.SYS_FALLOCATE, 3, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		g.ok(unix.SYS_FALLOCATE, 3, unix.FALLOC_FL_ZERO_RANGE, 0, 4096)
		g.fails(unix.EINVAL, unix.SYS_FALLOCATE, 3, unix.FALLOC_FL_ZERO_RANGE, devSize-1, 2)
		g.fails(unix.EOPNOTSUPP, unix.SYS_FALLOCATE, 3, 0, 0, 1)
		g.fails(unix.EINVAL, unix.SYS_FTRUNCATE, 3, 5)
		var st unix.Stat_t
		if unix.Fstat(file, &st); st.Size != devSize {
			t.Errorf("the file has %d bytes", st.Size)
		}
	})
}

func TestDevIOHostile(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		cfg := withDevice(t, rw, hostFile(t, make([]byte, devSize)), devSize)
		cfg.Caps = append(cfg.Caps, hv.CapSpec{Kind: abi.CapDevice, Rights: abi.RightRead, FD: hostFile(t, make([]byte, devSize)), Size: devSize},
			hv.CapSpec{Kind: abi.CapDevice, Rights: abi.RightWrite, FD: cfg.Caps[0].FD, Size: devSize})
		g := newGuest(t, cfg, lend)
		p := g.alloc(8192)
		one := []vec{{p, 512}}
		many := make([]vec, abi.MaxDevSegs)
		for i := range many {
			many[i] = vec{p, 512}
		}
		for _, tc := range []struct {
			what string
			r    devReq
			want int64
		}{
			{"closed descriptor", devReq{fd: 77, segs: one}, -int64(unix.EBADF)},
			{"negative descriptor", devReq{fd: -1, segs: one}, -int64(unix.EBADF)},
			{"no device", devReq{fd: 0, segs: one}, -int64(unix.EINVAL)},
			{"unknown operation", devReq{fd: 3, op: 99}, -int64(unix.EINVAL)},
			{"write to read-only", devReq{fd: 4, op: abi.DevWrite, segs: one}, -int64(unix.EBADF)},
			{"discard on read-only", devReq{fd: 4, op: abi.DevDiscard, n: 512}, -int64(unix.EBADF)},
			{"zeroes on read-only", devReq{fd: 4, op: abi.DevWriteZeroes, n: 512}, -int64(unix.EBADF)},
			{"flush of read-only", devReq{fd: 4, op: abi.DevFlush}, 0},
			{"read of write-only", devReq{fd: 5, segs: one}, -int64(unix.EBADF)},
			{"no segments", devReq{fd: 3, off: devSize}, 0},
			{"up to the end", devReq{fd: 3, off: devSize - 512, segs: one}, 512},
			{"over the end", devReq{fd: 3, off: devSize - 511, segs: one}, -int64(unix.EINVAL)},
			{"beyond the end", devReq{fd: 3, off: devSize + 1}, -int64(unix.EINVAL)},
			{"wrapping offset", devReq{fd: 3, off: ^uint64(0) - 511, segs: one}, -int64(unix.EINVAL)},
			{"negative offset", devReq{fd: 3, off: 1 << 63, segs: one}, -int64(unix.EINVAL)},
			{"most segments", devReq{fd: 3, segs: many}, 512 * abi.MaxDevSegs},
			{"too many segments", devReq{fd: 3, segs: append(many, vec{p, 512})}, -int64(unix.EINVAL)},
			{"2^32-1 segments", devReq{fd: 3, rawSeg: p, nsegs: 1<<32 - 1}, -int64(unix.EINVAL)},
			{"segments nowhere", devReq{fd: 3, rawSeg: 16, nsegs: 1}, -int64(unix.EFAULT)},
			{"segment nowhere", devReq{fd: 3, segs: []vec{{16, 512}}}, -int64(unix.EFAULT)},
			{"wrapping segment", devReq{fd: 3, segs: []vec{{^uint64(0) - 10, 512}}}, -int64(unix.EFAULT)},
			{"enormous segment", devReq{fd: 3, segs: []vec{{p, 1 << 62}}}, -int64(unix.EINVAL)},
			{"wrapping lengths", devReq{fd: 3, segs: []vec{{p, 512}, {p, ^uint64(0) - 511}}}, -int64(unix.EINVAL)},
			{"discard nothing", devReq{fd: 3, op: abi.DevDiscard}, 0},
			{"discard over the end", devReq{fd: 3, op: abi.DevDiscard, off: devSize - 1, n: 2}, -int64(unix.EINVAL)},
			{"wrapping discard", devReq{fd: 3, op: abi.DevDiscard, off: 2, n: ^uint64(0)}, -int64(unix.EINVAL)},
			{"wrapping zeroes", devReq{fd: 3, op: abi.DevWriteZeroes, off: ^uint64(0), n: 2}, -int64(unix.EINVAL)},
		} {
			// In between good ones, so that a bad one leaves no trace.
			got := g.devio(devReq{fd: 3, segs: one}, tc.r, devReq{fd: 3, segs: one})
			if got[1] != tc.want || got[0] != 512 || got[2] != 512 {
				t.Errorf("%s: %d, want 512 %d 512", tc.what, got, tc.want)
			}
		}
		g.fails(unix.EINVAL, abi.SysDevIO, p, abi.MaxDevBatch+1)
		g.fails(unix.EFAULT, abi.SysDevIO, 16, 1)
		g.ok(abi.SysDevIO, 16, 0)
	})
}

// A host file that is shorter than the device, since somebody has cut it off, is a device that fails: that is told, and counted where a supervisor sees it.
// What the guest asks for wrongly is not.
func TestDevIOFaults(t *testing.T) {
	bothMemories(t, func(t *testing.T, lend bool) {
		cfg := withDevice(t, rw, hostFile(t, bytes.Repeat([]byte{7}, 1000)), 1<<20)
		cfg.Caps = append(cfg.Caps, hv.CapSpec{Kind: abi.CapDevice, Name: "well", Rights: rw, FD: hostFile(t, make([]byte, devSize)), Size: devSize})
		page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Busy = page
		g := newGuest(t, cfg, lend)
		p := g.bytes(bytes.Repeat([]byte{9}, 300000))
		got := g.devio(devReq{fd: 3, off: 500, segs: []vec{{p, 500}}}, devReq{fd: 3, off: 500, segs: []vec{{p, 501}}}, devReq{fd: 3, off: 5000, segs: []vec{{p, 100}}},
			devReq{fd: 3, off: 1 << 20, segs: []vec{{p, 1}}}, devReq{fd: 4, off: 500, segs: []vec{{p, 500}}}, devReq{fd: 4, op: 99})
		if want := []int64{500, -int64(unix.EIO), -int64(unix.EIO), -int64(unix.EINVAL), 500, -int64(unix.EINVAL)}; !slices.Equal(got, want) {
			t.Fatal(got)
		}
		for i, want := range []uint64{2, uint64(unix.EIO), 0, 0} {
			if n := binary.NativeEndian.Uint64(page[hv.HostFaults+8*i:]); n != want {
				t.Errorf("word %d of the counters: %d, want %d", i, n, want)
			}
		}
	})
}

// Without PUNCH_HOLE or ZERO_RANGE on the host, zeroes are written. A pipe stands for what refuses all of it.
func TestDevIOErrors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	g := newGuest(t, withDevice(t, rw, int(w.Fd()), 1<<20), true)
	p := g.alloc(512)
	got := g.devio(devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 512}}}, devReq{fd: 3, op: abi.DevFlush},
		devReq{fd: 3, op: abi.DevDiscard, n: 512})
	want := []int64{-int64(unix.ESPIPE), -int64(unix.EINVAL), -int64(unix.ESPIPE)}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d, want %d", got, want)
	}
	// A tmpfs file has no ZERO_RANGE on older kernels; a memfd with a write seal refuses everything.
	f, err := hv.NewSealed("sealed", make([]byte, 4096))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g = newGuest(t, withDevice(t, rw, int(f.Fd()), 4096), true)
	got = g.devio(devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 512}}}, devReq{fd: 3, op: abi.DevWriteZeroes, n: 512})
	if got[0] != -int64(unix.EPERM) || got[1] != -int64(unix.EPERM) {
		t.Errorf("%d", got)
	}
}

// DevIO against a dumb disk in memory, on two threads.
func TestDevIORandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const size = 1 << 18
	file := hostFile(t, make([]byte, size))
	g := newGuest(t, withDevice(t, rw, file, size), true)
	disk := make([]byte, size)
	var wg sync.WaitGroup
	second := g.thread()
	for worker := range 2 {
		r := rand.New(rand.NewPCG(seed, uint64(worker)))
		th := g
		if worker == 1 {
			th = second
			th.mem = &fakeMem{b: make([]byte, 4<<20), lend: false}
			th.c.Mem = th.mem
			th.top = 0
		}
		base := worker * size / 2 // each has its half
		wg.Go(func() {
			for range 300 {
				off := base + r.IntN(size/2-20000)
				n := r.IntN(20000)
				p := th.alloc(n)
				var segs []vec
				for left, at := n, p; left > 0; {
					k := 1 + r.IntN(left)
					segs = append(segs, vec{at, uint64(k)})
					left, at = left-k, at+uint64(k)
					if len(segs) == abi.MaxDevSegs {
						n -= left
						break
					}
				}
				switch r.IntN(4) {
				case 0:
					b := th.view(p, n)
					for i := range b {
						b[i] = byte(r.Uint32())
					}
					copy(disk[off:], b)
					th.devio(devReq{fd: 3, op: abi.DevWrite, off: uint64(off), segs: segs})
				case 1:
					clear(disk[off : off+n])
					th.devio(devReq{fd: 3, op: abi.DevWriteZeroes, flags: uint16(r.IntN(2)), off: uint64(off), n: uint64(n)})
				case 2:
					clear(disk[off : off+n])
					th.devio(devReq{fd: 3, op: abi.DevDiscard, off: uint64(off), n: uint64(n)})
				case 3:
					th.devio(devReq{fd: 3, off: uint64(off), segs: segs})
					if !bytes.Equal(th.view(p, n), disk[off:off+n]) {
						t.Errorf("worker %d: wrong contents at %d", worker, off)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestDevIODoesNotAllocate(t *testing.T) {
	g := newGuest(t, withDevice(t, rw, hostFile(t, make([]byte, devSize)), devSize), true)
	g.mem.lend = true
	lender := &flatMem{g.mem}
	g.c.Mem = lender
	p := g.alloc(4096)
	batch := g.devioBatch(devReq{fd: 3, segs: []vec{{p, 4096}}}, devReq{fd: 3, op: abi.DevWrite, segs: []vec{{p, 1024}, {p + 2048, 1024}}}, devReq{fd: 3, op: abi.DevFlush})
	run := func() {
		if r, e, _ := g.t.Syscall(g.c, abi.SysDevIO, [6]uint64{batch, 3}); r != 3 || e != 0 {
			t.Fatal(r, e)
		}
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// flatMem lends whole ranges without allocating.
type flatMem struct{ *fakeMem }

func (m *flatMem) Segments(addr, n uint64, _ bool, dst [][]byte) ([][]byte, func(), bool, error) {
	s, err := m.at(addr, n)
	if err != nil {
		return dst, nil, true, err
	}
	return append(dst, s), nil, true, nil
}

func BenchmarkDevIO4K(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch%d", batch), func(b *testing.B) {
			file := hostFile(b, make([]byte, 16<<20))
			g := newGuest(b, withDevice(b, rw, file, 16<<20), true)
			g.c.Mem = &flatMem{g.mem}
			var reqs []devReq
			for i := range batch {
				reqs = append(reqs, devReq{fd: 3, off: uint64(i*7919%4096) * 4096, segs: []vec{{g.alloc(4096), 4096}}})
			}
			p := g.devioBatch(reqs...)
			args := [6]uint64{p, uint64(batch)}
			b.SetBytes(4096)
			for i := 0; b.Loop(); i++ {
				if i%batch == 0 {
					g.t.Syscall(g.c, abi.SysDevIO, args)
				}
			}
		})
	}
}

// BenchmarkPread4K is the same as BenchmarkDevIO4K without anything between.
func BenchmarkPread4K(b *testing.B) {
	file := hostFile(b, make([]byte, 16<<20))
	buf := make([]byte, 4096)
	b.SetBytes(4096)
	for i := 0; b.Loop(); i++ {
		unix.Pread(file, buf, int64(i*7919%4096)*4096)
	}
}

func BenchmarkCalls(b *testing.B) {
	g := newGuest(b, bare(), true)
	g.c.Mem = &flatMem{g.mem}
	run := func(name string, nr uint64, a ...uint64) {
		var args [6]uint64
		copy(args[:], a)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, e, _ := g.t.Syscall(g.c, nr, args); e != 0 {
					b.Fatal(e)
				}
			}
		})
	}
	p := g.bytes([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	run("lseek", unix.SYS_LSEEK, g.open("/dev/null", 0), 0, 0)
	run("eventfd write", unix.SYS_WRITE, g.ok(unix.SYS_EVENTFD2, 0, 0), p, 8)
	run("console write 8", unix.SYS_WRITE, 1, p, 8)
	f := g.open("/tmp/f", unix.O_CREAT|unix.O_RDWR)
	run("tmp pwrite 8", unix.SYS_PWRITE64, f, p, 8, 0)
	big := g.alloc(65536)
	run("tmp pwrite 64K", unix.SYS_PWRITE64, f, big, 65536, 0)
	run("tmp pread 64K", unix.SYS_PREAD64, f, big, 65536, 0)
	run("open and close", unix.SYS_ACCESS, g.str("/tmp/f"), 0)
	st := g.alloc(144)
	run("stat", unix.SYS_STAT, g.str("/tmp/f"), st)
	ep := g.ok(unix.SYS_EPOLL_CREATE1, 0)
	run("epoll_pwait 0", unix.SYS_EPOLL_PWAIT, ep, big, 128, 0, 0, 0)
}
