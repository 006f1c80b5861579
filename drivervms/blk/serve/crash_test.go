package serve

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
)

// crash is what a server dies of in these tests.
type crash struct{}

// crasher runs one server after the other on the same rings and logs; each dies at a random step, some in the
// middle of a batch of device operations.
type crasher struct {
	t       *testing.T
	dev     *memDevice
	rigs    []*rig
	rnd     *rand.Rand
	crashes int
	steps   map[Step]int
}

// Do makes crasher a Device that may die between two operations. Flushes run on another goroutine, where a
// server does not die; it may die while they are in progress.
func (c *crasher) Do(ops []Op) {
	if ops[0].Kind == abi.DevFlush {
		c.dev.Do(ops)
		return
	}
	cut := len(ops)
	if c.rnd.IntN(40) == 0 {
		cut = c.rnd.IntN(len(ops))
	}
	if cut > 0 {
		c.dev.Do(ops[:cut])
	}
	if cut < len(ops) {
		c.steps[-1]++
		panic(crash{})
	}
}

// run serves until stop is rung, and the last server goes on until then.
func (c *crasher) run(stop ring.Doorbell, limit int) {
	for !c.one(stop, limit) {
	}
}

func (c *crasher) one(stop ring.Doorbell, limit int) (stopped bool) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case crash{}:
			c.crashes++
		default:
			panic(r)
		}
	}()
	var dev Device = c
	s := New(dev, []Disk{{Name: "disk", FD: 7, Size: uint64(len(c.dev.data))}}, ring.PollerConfig{})
	if c.crashes < limit {
		s.Step = func(p Step) {
			if c.rnd.IntN(30) == 0 {
				c.steps[p]++
				panic(crash{})
			}
		}
	} else {
		s.dev = c.dev
	}
	for _, r := range c.rigs {
		if err := s.Attach(r.client(c.t)); err != nil {
			panic(err)
		}
	}
	serveUntil(s, stop)
	return true
}

const crashBlock = 4096

// fill makes a block that names itself.
func fill(p []byte, block, version uint64) {
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], block)
		binary.LittleEndian.PutUint64(p[i+8:], version)
	}
}

// version returns a block's version, or an error when it is torn or another one.
func version(p []byte, block uint64) (uint64, error) {
	v := binary.LittleEndian.Uint64(p[8:])
	if v == 0 {
		for _, b := range p {
			if b != 0 {
				return 0, fmt.Errorf("block %d: version 0 with content", block)
			}
		}
		return 0, nil
	}
	for i := 0; i < len(p); i += 16 {
		if b, w := binary.LittleEndian.Uint64(p[i:]), binary.LittleEndian.Uint64(p[i+8:]); b != block || w != v {
			return 0, fmt.Errorf("block %d, version %d: found block %d, version %d at %d", block, v, b, w, i)
		}
	}
	return v, nil
}

// ack is a flush that was acknowledged: by then, want's versions were acknowledged before it was asked for.
type ack struct {
	events int // length of the device's log when the acknowledgement came
	first  uint64
	want   []uint64
}

// verifier writes ever newer versions to the blocks [first, first+n), reads them back, and flushes.
func verifier(d *guest.Disk, dev *memDevice, first, n uint64, rounds int, rnd *rand.Rand) (acks []ack, err error) {
	versions := make([]uint64, n)
	p := make([]byte, crashBlock)
	for i := range rounds {
		k := rnd.Uint64N(n)
		switch rnd.IntN(8) {
		case 0:
			want := append([]uint64(nil), versions...)
			if err := d.Flush(); err != nil {
				return nil, err
			}
			dev.mu.Lock()
			acks = append(acks, ack{events: len(dev.log), first: first, want: want})
			dev.mu.Unlock()
		case 1, 2, 3:
			if _, err := d.ReadAt(p, int64(first+k)*crashBlock); err != nil {
				return nil, err
			}
			got, err := version(p, first+k)
			if err != nil {
				return nil, err
			}
			if got != versions[k] {
				return nil, fmt.Errorf("round %d, block %d: read version %d, wrote %d", i, first+k, got, versions[k])
			}
		default:
			fill(p, first+k, versions[k]+1)
			if _, err := d.WriteAt(p, int64(first+k)*crashBlock); err != nil {
				return nil, err
			}
			versions[k]++
		}
	}
	return acks, nil
}

// TestCrashes crashes the server at every step under verifying writers: they see no error and no lost write,
// and what a flush has acknowledged is in the durable image of every later moment.
func TestCrashes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const clients, writers, blocks = 2, 4, 16
	size := uint64(clients * writers * blocks * crashBlock)
	dev := newMemDevice(int(size))
	dev.record = true
	c := &crasher{t: t, dev: dev, rnd: rand.New(rand.NewPCG(seed, 0)), steps: map[Step]int{}}
	for i := range clients {
		r := newRig(t, 2, 8, 256<<10, size)
		r.id = uint64(i + 1)
		c.rigs = append(c.rigs, r)
	}
	stop, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(stop, 150)
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var acks []ack
	for i := range clients * writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			a, err := verifier(c.rigs[i/writers].disk, dev, uint64(i*blocks), blocks, 400, rand.New(rand.NewPCG(seed, uint64(i+1))))
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
			mu.Lock()
			acks = append(acks, a...)
			mu.Unlock()
		}()
	}
	wg.Wait()
	stop.Ring()
	<-done
	t.Logf("%d crashes (%v by step), %d events, %d flushes acknowledged", c.crashes, c.steps, len(dev.log), len(acks))
	if c.crashes < 20 {
		t.Errorf("only %d crashes", c.crashes)
	}
	for i, r := range c.rigs {
		if n := r.disk.Rekicks(); n != 0 {
			t.Errorf("client %d had to ring again %d times: a doorbell was lost", i, n)
		}
	}
	checkDurable(t, dev, acks)
}

// checkDurable replays the device's log. At each acknowledged flush only what a flush of the device covered
// counts, as after a power cut at that moment.
func checkDurable(t *testing.T, dev *memDevice, acks []ack) {
	t.Helper()
	cache, durable := make([]byte, len(dev.data)), make([]byte, len(dev.data))
	byEnd := map[int][]ack{}
	for _, a := range acks {
		byEnd[a.events] = append(byEnd[a.events], a)
	}
	checked := 0
	for i := 0; i <= len(dev.log); i++ {
		for _, a := range byEnd[i] {
			for k, want := range a.want {
				b := a.first + uint64(k)
				got, err := version(durable[b*crashBlock:][:crashBlock], b)
				if err != nil || got < want {
					t.Fatalf("power cut after %d events: block %d has version %d, acknowledged %d, %v", i, b, got, want, err)
				}
			}
			checked++
		}
		if i == len(dev.log) {
			break
		}
		if e := dev.log[i]; e.flush {
			copy(durable, cache)
		} else {
			copy(cache[e.off:], e.data)
		}
	}
	if checked != len(acks) || checked == 0 {
		t.Errorf("%d of %d acknowledged flushes checked", checked, len(acks))
	}
}

// TestDurableWithoutFlushes checks that a client that did not negotiate flushes has every acknowledged write
// durable.
func TestDurableWithoutFlushes(t *testing.T) {
	dev := newMemDevice(testSize)
	r := newRig(t, 1, 8, 256<<10, testSize)
	r.features = guest.DiskFeatures
	_, stop := start(t, dev, testSize, r)
	defer stop()
	p := make([]byte, 512)
	for i := range 20 {
		p[0] = byte(i + 1)
		if _, err := r.disk.WriteAt(p, int64(i)*512); err != nil {
			t.Fatal(err)
		}
		dev.mu.Lock()
		if dev.durable[i*512] != byte(i+1) {
			t.Errorf("write %d is not durable", i)
		}
		dev.mu.Unlock()
	}
}
