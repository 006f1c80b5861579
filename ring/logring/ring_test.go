package logring

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/ring"
)

var _ ring.Source = (*Consumer)(nil)

func memory(t testing.TB, bytes int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, bytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

func pair(t testing.TB, data int, pos uint64) (*Producer, *Consumer) {
	t.Helper()
	mem := memory(t, headerBytes+data)
	p, err := NewProducer(mem)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConsumer(mem, pos)
	if err != nil {
		t.Fatal(err)
	}
	return p, c
}

func TestMemory(t *testing.T) {
	for _, n := range []int{0, 4096, MinBytes + 1, MinBytes - 8, MaxBytes + 4096} {
		if _, err := NewProducer(make([]byte, n)); !errors.Is(err, ErrMemory) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	b := memory(t, MinBytes+4096)
	if _, err := NewConsumer(b[1:][:MinBytes], 0); !errors.Is(err, ErrMemory) {
		t.Errorf("odd address: %v", err)
	}
}

// Whatever is written, and read in whatever pieces: what is read and what is lost are the stream, in order.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p, c := pair(t, 8192, 0)
	var stream []byte
	var at uint64
	buf := make([]byte, 5000)
	for range 3000 {
		b := make([]byte, r.IntN(1<<r.IntN(15)))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		p.Put(b, time.Unix(0, int64(r.Uint32())))
		stream = append(stream, b...)
		for r.IntN(3) > 0 {
			n, lost, _, err := c.Take(buf[:r.IntN(len(buf))])
			if err != nil {
				t.Fatal(err)
			}
			at += lost
			if lost > 0 && uint64(len(stream))-at > 8192 {
				t.Fatal("lost, and not the oldest")
			}
			if !bytes.Equal(buf[:n], stream[at:][:n]) {
				t.Fatalf("bytes at %d", at)
			}
			at += uint64(n)
			if at != c.Position() {
				t.Fatalf("position %d, expected %d", c.Position(), at)
			}
		}
	}
	for c.Pending() {
		_, _, _, _ = c.Take(buf)
	}
	if c.Position() != uint64(len(stream)) {
		t.Errorf("%d of %d bytes", c.Position(), len(stream))
	}
}

func TestLongWrite(t *testing.T) {
	p, c := pair(t, 4096, 0)
	b := bytes.Repeat([]byte("0123456789abcdef"), 1000)
	p.Put(b, time.Now())
	buf := make([]byte, 8192)
	n, lost, _, err := c.Take(buf)
	if err != nil || n != 4096 || lost != uint64(len(b)-4096) || !bytes.Equal(buf[:n], b[len(b)-4096:]) {
		t.Errorf("%d bytes, %d lost, %v", n, lost, err)
	}
}

func TestPending(t *testing.T) {
	p, c := pair(t, 4096, 0)
	waiting := func() bool { return c.avail.Load() != c.used.Load() }
	if waiting() || c.Pending() || !c.Arm() {
		t.Error("an empty ring")
	}
	if !p.Put([]byte("one"), time.Now()) || p.Put([]byte("two"), time.Now()) {
		t.Error("a sleeping consumer is woken once")
	}
	if !waiting() || !c.Pending() || c.Arm() {
		t.Error("a ring with something in it")
	}
	c.Disarm()
	if p.Put([]byte("three"), time.Now()) || p.Put(nil, time.Now()) {
		t.Error("a consumer that is awake")
	}
	buf := make([]byte, 6)
	for c.Pending() {
		if !waiting() {
			t.Error("nothing waits")
		}
		_, _, _, _ = c.Take(buf)
		c.Done()
	}
	if waiting() {
		t.Error("something waits")
	}
}

func TestTimes(t *testing.T) {
	p, c := pair(t, 1<<16, 0)
	base := time.Unix(1000, 0)
	line := []byte("0123456789")
	for i := range 3 * marks {
		p.Put(line, base.Add(time.Duration(i)*time.Second))
		p.Put(line, base.Add(time.Duration(i)*time.Second+markEvery/2))
	}
	buf := make([]byte, 1<<16)
	n, _, at, err := c.Take(buf)
	// What is older than the oldest mark gets its time.
	if want := base.Add(2 * marks * time.Second); err != nil || n != 2*marks*2*len(line) || !Time(at).Equal(want) {
		t.Fatalf("%d bytes at %v, expected %v, %v", n, Time(at), want, err)
	}
	for i := range marks {
		n, lost, at, err := c.Take(buf)
		if want := base.Add(time.Duration(2*marks+i) * time.Second); n != 2*len(line) || lost != 0 || err != nil || !Time(at).Equal(want) {
			t.Fatalf("%d bytes at %v, expected %v, %v", n, Time(at), want, err)
		}
	}
	if n, _, _, _ := c.Take(buf); n != 0 {
		t.Errorf("%d bytes more", n)
	}
	if !Time(0).IsZero() || !Time(-5).IsZero() {
		t.Error("times that are none")
	}
}

// A producer that writes anything to the ring harms nobody but itself.
func FuzzHostileProducer(f *testing.F) {
	f.Add(uint64(5), uint64(1<<63), uint64(7), uint64(9))
	f.Add(uint64(1<<64-1), uint64(0), uint64(1<<64-1), uint64(1<<64-1))
	f.Add(uint64(4096), uint64(1<<64-1), uint64(0), uint64(0))
	mem := memory(f, headerBytes+4096)
	f.Fuzz(func(t *testing.T, head, claim, made, mark uint64) {
		for _, pos := range []uint64{0, 1, 1 << 40, 1<<64 - 5000, 1<<64 - 1} {
			c, err := NewConsumer(mem, pos)
			if err != nil {
				t.Fatal(err)
			}
			word64(mem, headOffset).Store(head)
			word64(mem, claimOffset).Store(claim)
			word64(mem, marksOffset).Store(made)
			for i := range marks {
				word64(mem, tableOffset+16*i).Store(mark + uint64(i))
			}
			buf := make([]byte, 1000)
			for range 10000 {
				before := c.Position()
				n, _, _, err := c.Take(buf)
				if err != nil && head >= before {
					t.Fatal(err)
				}
				if n > len(buf) || err != nil || !c.Pending() {
					break
				}
				if c.Position() == before {
					t.Fatalf("no progress at %d", before)
				}
				c.Done()
			}
		}
	})
}

// A producer on another thread: nothing that is returned is torn.
func TestConcurrent(t *testing.T) {
	p, c := pair(t, 4096, 0)
	const total = 1 << 20
	go func() {
		b := make([]byte, 64)
		for i := 0; i < total; i += len(b) {
			for j := range b {
				b[j] = byte((i + j) / 7)
			}
			p.Put(b, time.Unix(1, 0))
		}
	}()
	buf := make([]byte, 512)
	for at := uint64(0); at < total; {
		n, lost, _, err := c.Take(buf)
		if err != nil {
			t.Fatal(err)
		}
		at += lost
		for i, v := range buf[:n] {
			if v != byte((at+uint64(i))/7) {
				t.Fatalf("byte %d", at+uint64(i))
			}
		}
		at += uint64(n)
	}
}

func BenchmarkPut(b *testing.B) {
	p, _ := pair(b, 1<<20, 0)
	line := bytes.Repeat([]byte("x"), 80)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		p.Put(line, now)
	}
}
