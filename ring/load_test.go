package ring_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/grailos/grail/ring"
	"golang.org/x/sys/unix"
)

// echo is a device on its own goroutine or in its own process: it answers each number with its successor.
type echo struct {
	mem        []byte // of shared memory: the queue at 0, its data area behind it
	size       uint16
	features   uint64
	kick, call ring.Doorbell
	spin       time.Duration
	count      int // requests to serve
}

// load drives an echo device, and checks every answer.
type load struct {
	drv  *ring.Driver
	poll *ring.Poller
	mem  []byte
	data uint64
	kick ring.Doorbell
	free []int
	segs [2]ring.Segment
	done []ring.Completion
	next uint64
	want []uint64
}

const echoSlot = 64 // bytes of data area a request

func echoBytes(size uint16) uint64 {
	l, err := ring.LayoutOf(size)
	if err != nil {
		panic(err)
	}
	return l.Bytes + echoSlot*uint64(size)
}

func (e *echo) queue() (*ring.Memory, ring.Queue, uint64) {
	l, err := ring.LayoutOf(e.size)
	if err != nil {
		panic(err)
	}
	m, err := ring.NewMemory(ring.Region{Mem: e.mem})
	if err != nil {
		panic(err)
	}
	return m, l.At(0, e.features), l.Bytes
}

// run serves count requests. It fails on the driver's offence, and when nothing comes for long.
func (e *echo) run() error {
	m, q, _ := e.queue()
	dev, err := ring.NewDevice(m, ring.DeviceConfig{Queue: q})
	if err != nil {
		return err
	}
	p := ring.NewPoller(ring.PollerConfig{MaxSpin: e.spin})
	p.Add(dev, e.kick)
	var c ring.Chain
	var b [8]byte
	for served := 0; served < e.count; {
		wake, err := p.Wait(20 * time.Second)
		if err != nil || wake == ring.WakeTimeout {
			return fmt.Errorf("device stalled after %d requests: %w", served, err)
		}
		for {
			ok, err := dev.Pop(&c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			c.ReadAt(b[:], 0)
			binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+1)
			dev.Push(c.Head, uint32(c.WriteAt(b[:], 0)))
			served++
		}
		if dev.Publish() {
			if err := e.call.Ring(); err != nil {
				return err
			}
		}
	}
	return nil
}

// newLoad makes the driver for e; the device may start afterwards.
func newLoad(t testing.TB, e *echo) *load {
	t.Helper()
	m, q, data := e.queue()
	drv, err := ring.NewDriver(m, ring.DriverConfig{Queue: q})
	if err != nil {
		t.Fatal(err)
	}
	l := &load{
		drv: drv, mem: e.mem, data: data, kick: e.kick, poll: ring.NewPoller(ring.PollerConfig{MaxSpin: e.spin}),
		done: make([]ring.Completion, e.size), want: make([]uint64, e.size),
	}
	l.poll.Add(drv, e.call)
	for i := range int(e.size) / 2 { // two descriptors a request
		l.free = append(l.free, i)
	}
	return l
}

// fill adds up to n requests and publishes them.
func (l *load) fill(t testing.TB, n int) {
	for ; n > 0 && len(l.free) > 0; n-- {
		slot := l.free[len(l.free)-1]
		l.free = l.free[:len(l.free)-1]
		at := l.data + echoSlot*uint64(slot)
		l.next += 3
		l.want[slot] = l.next + 1
		binary.LittleEndian.PutUint64(l.mem[at:], l.next)
		binary.LittleEndian.PutUint64(l.mem[at+8:], 0)
		l.segs = [2]ring.Segment{{Addr: at, Len: 8}, {Addr: at + 8, Len: 8}}
		if err := l.drv.Add(l.segs[:1], l.segs[1:], uint64(slot)); err != nil {
			t.Fatal(err)
		}
	}
	if l.drv.Publish() {
		if err := l.kick.Ring(); err != nil {
			t.Fatal(err)
		}
	}
}

// reap waits for completions and returns how many there were.
func (l *load) reap(t testing.TB) int {
	for {
		n, err := l.drv.Used(l.done)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range l.done[:n] {
			at := l.data + echoSlot*d.Token
			if got := binary.LittleEndian.Uint64(l.mem[at+8:]); got != l.want[d.Token] || d.Written != 8 {
				t.Fatalf("answer %d of %d bytes, want %d", got, d.Written, l.want[d.Token])
			}
			l.free = append(l.free, int(d.Token))
		}
		if n > 0 {
			return n
		}
		if wake, err := l.poll.Wait(20 * time.Second); err != nil || wake == ring.WakeTimeout {
			t.Fatalf("driver stalled at request %d: %v", l.next/3, err)
		}
	}
}

// run performs n requests in batches of changing size.
func (l *load) run(t testing.TB, n int) {
	for sent, got := 0, 0; got < n; {
		k := min(1+sent%len(l.want), n-sent)
		before := len(l.free)
		l.fill(t, k)
		sent += before - len(l.free)
		got += l.reap(t)
	}
}

func bells(t testing.TB) (kick, call ring.Doorbell) {
	t.Helper()
	var b [2]ring.Doorbell
	for i := range b {
		var err error
		if b[i], err = ring.NewDoorbell(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b[i].Close() })
	}
	return b[0], b[1]
}

func TestTwoGoroutines(t *testing.T) {
	for _, features := range []uint64{0, ring.FeatureEventIdx} {
		for _, size := range []uint16{2, 64} {
			for _, spin := range []time.Duration{-1, 0} {
				t.Run(fmt.Sprintf("features=%#x/size=%d/spin=%v", features, size, spin), func(t *testing.T) {
					s, err := ring.NewShared("test", echoBytes(size))
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					e := &echo{mem: s.Mem, size: size, features: features, spin: spin, count: 30000}
					e.kick, e.call = bells(t)
					l := newLoad(t, e)
					result := make(chan error, 1)
					go func() { result <- e.run() }()
					l.run(t, e.count)
					if err := <-result; err != nil {
						t.Fatal(err)
					}
				})
			}
		}
	}
}

// envEcho makes the test binary an echo device on descriptors 3 (memory), 4 (kick) and 5 (call).
const envEcho = "RING_TEST_ECHO"

const processRequests = 50000

func TestMain(m *testing.M) {
	if os.Getenv(envEcho) != "" {
		if err := echoProcess(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func echoProcess() error {
	mem, err := unix.Mmap(3, 0, int(echoBytes(64)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	e := &echo{mem: mem, size: 64, features: ring.FeatureEventIdx, count: processRequests}
	e.kick, e.call = ring.DoorbellOf(4), ring.DoorbellOf(5)
	return e.run()
}

func TestTwoProcesses(t *testing.T) {
	s, err := ring.NewShared("test", echoBytes(64))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e := &echo{mem: s.Mem, size: 64, features: ring.FeatureEventIdx, count: processRequests}
	e.kick, e.call = bells(t)
	l := newLoad(t, e)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envEcho+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	for _, fd := range []int{s.FD(), e.kick.FD(), e.call.FD()} {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(dup), "shared")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	runtime.LockOSThread() // Pdeathsig is the parent thread's
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.run(t, processRequests)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestNoAllocation(t *testing.T) {
	b := newBed(t, 64, ring.FeatureEventIdx|ring.FeatureIndirect, 0, 4, true)
	readable := []ring.Segment{{Addr: b.data, Len: 8}}
	writable := []ring.Segment{{Addr: b.data + 8, Len: 8}, {Addr: b.data + 16, Len: 8}}
	var c ring.Chain
	done := make([]ring.Completion, 8)
	bell, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	p := ring.NewPoller(ring.PollerConfig{})
	p.Add(b.drv, bell)
	if n := testing.AllocsPerRun(1000, func() {
		err := b.drv.Add(readable, writable, 1)
		b.drv.Publish()
		ok, err2 := b.dev.Pop(&c)
		b.dev.Push(c.Head, 0)
		b.dev.Publish()
		k, err3 := b.drv.Used(done)
		b.drv.Arm()
		b.drv.Disarm()
		err4 := bell.Ring()
		_, err5 := p.Wait(0)
		_, err6 := bell.Drain()
		if err := errors.Join(err, err2, err3, err4, err5, err6); err != nil || !ok || k != 1 {
			t.Fatal(ok, k, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
