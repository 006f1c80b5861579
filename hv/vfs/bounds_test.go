package vfs

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

func TestTmpLimit(t *testing.T) {
	cfg := bare()
	cfg.TmpLimit = 1 << 20
	g := newGuest(t, cfg, true)
	fd := g.open("/tmp/f", unix.O_CREAT|unix.O_RDWR)
	big := g.alloc(2 << 20)
	n := g.ok(unix.SYS_WRITE, fd, big, 2<<20)
	if n < 900<<10 || n > 1<<20 {
		t.Errorf("%d bytes of 1 MiB were taken", n)
	}
	g.fails(unix.ENOSPC, unix.SYS_WRITE, fd, big, 4096)
	dirs := 0 // nodes count less than a block
	for ; dirs < 10; dirs++ {
		if _, e := g.call(unix.SYS_MKDIR, g.str(fmt.Sprintf("/tmp/%d", dirs)), 0); e == unix.ENOSPC {
			break
		}
	}
	if dirs >= blockSize/nodeCharge {
		t.Errorf("%d directories in a full /tmp", dirs)
	}
	for d := range dirs {
		g.ok(unix.SYS_RMDIR, g.str(fmt.Sprintf("/tmp/%d", d)))
	}
	buf := g.alloc(120)
	g.ok(unix.SYS_STATFS, g.str("/tmp"), buf)
	if free := binary.LittleEndian.Uint64(g.view(buf+24, 8)); free != 0 {
		t.Errorf("statfs says that %d blocks are free", free)
	}
	if typ := g.u32(buf); typ != unix.TMPFS_MAGIC {
		t.Errorf("file system type %#x", typ)
	}
	g.ok(unix.SYS_FTRUNCATE, fd, 0)
	// All or nothing.
	g.fails(unix.ENOSPC, unix.SYS_FALLOCATE, fd, 0, 0, 2<<20)
	if used := g.t.tree.arena.used; used != nodeCharge {
		t.Errorf("%d bytes are used after a fallocate that failed", used)
	}
	g.ok(unix.SYS_FALLOCATE, fd, 0, 0, 512<<10)
	g.ok(unix.SYS_FALLOCATE, fd, 0, 0, 900<<10) // what is there counts
	g.fails(unix.EFBIG, unix.SYS_FALLOCATE, fd, 0, 1<<40, 1)
	g.fails(unix.EFBIG, unix.SYS_FALLOCATE, fd, 0, 1<<62, 1<<62)
	g.fails(unix.EINVAL, unix.SYS_FALLOCATE, fd, 0, 0, 0)
	g.fails(unix.EOPNOTSUPP, unix.SYS_FALLOCATE, fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
	g.ok(unix.SYS_FALLOCATE, fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 900<<10)
	// A sparse file costs what is written; its end is bounded.
	g.ok(unix.SYS_FTRUNCATE, fd, uint64(maxFile))
	g.fails(unix.EFBIG, unix.SYS_FTRUNCATE, fd, uint64(maxFile)+1)
	g.ok(unix.SYS_PWRITE64, fd, big, 10, uint64(maxFile)-5)
	g.fails(unix.EFBIG, unix.SYS_PWRITE64, fd, big, 10, uint64(maxFile))
	g.fails(unix.EFBIG, unix.SYS_PWRITE64, fd, big, 10, 1<<62)
	g.ok(unix.SYS_PREAD64, fd, big, 1<<20, 1<<39)
	g.ok(unix.SYS_CLOSE, fd)
	g.emptyTmp()
	// Freed memory comes back zeroed.
	fd = g.open("/tmp/f", unix.O_CREAT|unix.O_RDWR)
	for i := range g.view(big, 1<<20) {
		g.view(big, 1<<20)[i] = 0xaa
	}
	g.ok(unix.SYS_WRITE, fd, big, 900<<10)
	g.ok(unix.SYS_FTRUNCATE, fd, 0)
	for off := uint64(0); off < 900<<10; off += 8192 {
		g.ok(unix.SYS_PWRITE64, fd, big, 1, off)
	}
	g.ok(unix.SYS_PREAD64, fd, big, 880<<10, 0)
	for i, b := range g.view(big, 880<<10) {
		if b != 0 && i%8192 != 0 {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
}

func TestNodeLimit(t *testing.T) {
	cfg := bare()
	cfg.TmpLimit = 1 << 30
	g := newGuest(t, cfg, true)
	dir := ""
	for i := range maxTmpNodes {
		if i%1000 == 0 {
			dir = fmt.Sprintf("/tmp/d%d", i)
			g.ok(unix.SYS_MKDIR, g.str(dir), 0o755)
			continue
		}
		g.ok(unix.SYS_SYMLINK, g.str("x"), g.str(fmt.Sprintf("%s/%d", dir, i)))
	}
	g.fails(unix.ENOSPC, unix.SYS_MKDIR, g.str("/tmp/more"), 0o755)
	g.fails(unix.ENOSPC, unix.SYS_SYMLINK, g.str("x"), g.str("/tmp/more"))
	g.fails(unix.ENOSPC, unix.SYS_OPEN, g.str("/tmp/more"), unix.O_CREAT|unix.O_WRONLY, 0)
}

// Listings are bounded in sum; one alone is not.
func TestListingLimit(t *testing.T) {
	cfg := bare()
	cfg.TmpLimit = 1 << 30
	g := newGuest(t, cfg, true)
	const files = 40000
	for i := range files {
		g.ok(unix.SYS_SYMLINK, g.str("x"), g.str(fmt.Sprintf("/tmp/%d", i)))
	}
	buf := g.alloc(4096)
	var fds []uint64
	for {
		fd := g.open("/tmp", unix.O_DIRECTORY)
		fds = append(fds, fd)
		if _, e := g.call(unix.SYS_GETDENTS64, fd, buf, 4096); e != 0 {
			if e != unix.ENOMEM {
				t.Fatal(e)
			}
			break
		}
	}
	if len(fds) != maxListed/files+1 {
		t.Errorf("%d listings of %d entries", len(fds), files)
	}
	g.ok(unix.SYS_CLOSE, fds[0])
	g.ok(unix.SYS_GETDENTS64, fds[len(fds)-1], buf, 4096)
	g.ok(unix.SYS_CLOSE_RANGE, fds[0], 4095, 0)
	if n := g.t.listed.Load(); n != 0 {
		t.Errorf("%d entries are accounted for", n)
	}
}

func TestPipeLimit(t *testing.T) {
	g := newGuest(t, bare(), true)
	p := g.alloc(8)
	for range maxPipes {
		g.ok(unix.SYS_PIPE, p)
	}
	g.fails(unix.ENFILE, unix.SYS_PIPE, p)
	g.ok(unix.SYS_CLOSE_RANGE, 3, 4095, 0)
	g.ok(unix.SYS_PIPE, p)
	g.fails(unix.EFAULT, unix.SYS_PIPE, 16)
	if n := g.t.pipes.Load(); n != 2 {
		t.Errorf("%d ends of pipes are accounted for", n)
	}
}

// Entries under numbers that were closed again take host descriptors; there is an end to it.
func TestEpollLimit(t *testing.T) {
	g := newGuest(t, bare(), true)
	before := openFDs(t)
	e := g.ok(unix.SYS_EVENTFD2, 0, 0)
	ep := g.ok(unix.SYS_EPOLL_CREATE1, 0)
	ev := g.bytes(make([]byte, 12))
	var last unix.Errno
	n := 0
	for ; last == 0 && n < 4*maxCopies; n++ {
		d := g.ok(unix.SYS_FCNTL, e, unix.F_DUPFD, uint64(10+n%3000))
		_, last = g.call(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, d, ev)
		g.ok(unix.SYS_CLOSE, d)
	}
	if last != unix.ENOSPC || n != maxCopies+2 {
		t.Errorf("after %d entries: %v", n, last)
	}
	g.ok(unix.SYS_CLOSE, ep)
	g.ok(unix.SYS_CLOSE, e)
	if g.t.watched.Load() != 0 || g.t.copies.Load() != 0 || openFDs(t) != before {
		t.Errorf("left over: %d entries, %d copies, %d host descriptors", g.t.watched.Load(), g.t.copies.Load(), openFDs(t)-before)
	}
}

// A peer that fills its end of a doorbell and makes it blocking cannot hang the thread that rings it.
func TestHostileCall(t *testing.T) {
	bell := doorbell(t)
	g := newGuest(t, bare(), true)
	list, err := g.t.InstallCaps(hv.CapSpec{Kind: abi.CapCall, Rights: abi.RightWrite, FD: bell})
	if err != nil {
		t.Fatal(err)
	}
	full := binary.LittleEndian.AppendUint64(nil, ^uint64(0)-1)
	if _, err := unix.Write(bell, full); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(bell, false); err != nil {
		t.Fatal(err)
	}
	fd := uint64(list[0].FD)
	g.ok(unix.SYS_FCNTL, fd, unix.F_SETFL, unix.O_NONBLOCK)
	g.fails(unix.EAGAIN, unix.SYS_WRITE, fd, g.bytes([]byte{1, 0, 0, 0, 0, 0, 0, 0}), 8)
}

// Many threads, one table: for the race detector, and against deadlocks.
func TestConcurrentCalls(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := fuzzGuest(t, time.Microsecond)
	var wg sync.WaitGroup
	const threads = 4
	for i := range threads {
		th := &guest{tb: t, t: g.t, mem: &fakeMem{b: make([]byte, 1<<20), lend: i%2 == 0}}
		copy(th.mem.b, g.mem.b[:4096])
		th.c = &Call{Mem: th.mem, Wait: pollWaiter{limit: time.Microsecond}}
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for range 8000 {
				var a [6]uint64
				for i := range a {
					a[i] = interesting[r.IntN(len(interesting))]
				}
				g.t.Syscall(th.c, calls[r.IntN(len(calls))], a)
			}
		})
	}
	wg.Go(func() {
		for i := range 200 {
			bell, err := hv.NewDoorbell()
			if err != nil {
				t.Error(err)
				return
			}
			list, err := g.t.InstallCaps(hv.CapSpec{Kind: abi.CapKick, Rights: rw, FD: int(bell.Fd())})
			bell.Close()
			if err != nil {
				continue // the guest's descriptors are used up
			}
			g.t.Control().Push(abi.Message{ID: uint64(i)})
			g.t.Console()
			g.t.Remove(list...)
		}
	})
	wg.Wait()
	g.settle()
}
