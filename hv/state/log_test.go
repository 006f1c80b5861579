package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is a driver whose state is some bytes for each of a few kinds, and the writer that keeps it.
type model struct {
	l *Log
	m map[uint16][]byte
}

func openModel(t testing.TB, mem []byte, version uint32) (*model, Taken) {
	t.Helper()
	d := &model{m: map[uint16][]byte{}}
	l, taken, err := Open(mem, version, func(kind uint16, data []byte) { d.m[kind] = bytes.Clone(data) })
	if err != nil {
		t.Fatal(err)
	}
	d.l = l
	return d, taken
}

func (d *model) start() {
	d.l.Start(func(put Put) {
		for k := range uint16(8) {
			if v, ok := d.m[k]; ok {
				put(k, v)
			}
		}
	})
}

func (d *model) set(kind uint16, data []byte) {
	d.m[kind] = data
	d.l.Append(kind, data)
}

func same(a, b map[uint16][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || !bytes.Equal(v, w) {
			return false
		}
	}
	return true
}

type killed struct{}

// TestKilledAtEveryByte kills a writer at each byte that it writes: what the successor takes over is the
// state before or after the change at hand, never anything else, and the successor goes on from there.
func TestKilledAtEveryByte(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := make([]byte, MinSize)
	d, _ := openModel(t, mem, 1)
	d.start()
	kills, checkpoints := 0, 0
	for step := range 400 {
		kind, data := uint16(rng.IntN(8)), make([]byte, rng.IntN(300))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		before := map[uint16][]byte{}
		for k, v := range d.m {
			before[k] = v
		}
		// The change, with each of its bytes told apart.
		gen := d.l.generation
		image := bytes.Clone(mem)
		type write struct {
			at int
			b  byte
		}
		var writes []write
		d.l.store = func(dst, src []byte) {
			at := offsetIn(mem, dst)
			for i := range min(len(dst), len(src)) {
				writes = append(writes, write{at + i, src[i]})
			}
			copy(dst, src)
		}
		d.set(kind, data)
		d.l.store = func(dst, src []byte) { copy(dst, src) }
		after := d.m
		if d.l.generation != gen {
			checkpoints++
		}
		every := 1
		if len(writes) > 400 {
			every = 7 + step%11 // a checkpoint has thousands: all of them over the test's length
		}
		for n := 0; n <= len(writes); n++ {
			if n > 0 {
				image[writes[n-1].at] = writes[n-1].b
			}
			if n%every != 0 && n < len(writes)-40 {
				continue
			}
			kills++
			s, _ := openModel(t, bytes.Clone(image), 1)
			switch {
			case same(s.m, after):
			case n < len(writes) && same(s.m, before):
			default:
				t.Fatalf("step %d, killed after %d of %d bytes: %d kinds, want the state before or after", step, n, len(writes), len(s.m))
			}
		}
		if !bytes.Equal(image, mem) {
			t.Fatal("the writes that were seen are not all")
		}
		if rng.IntN(20) == 0 { // a successor
			s, _ := openModel(t, mem, 1)
			if !same(s.m, d.m) {
				t.Fatalf("step %d: the successor knows something else", step)
			}
			s.start()
			d = s
		}
	}
	if kills < 10000 || checkpoints < 5 {
		t.Errorf("%d kills, %d checkpoints", kills, checkpoints)
	}
	t.Logf("%d kills, %d checkpoints", kills, checkpoints)
}

// TestDamage flips bytes all over a region: the successor never panics, and takes over a state that was true once.
func TestDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := make([]byte, MinSize)
	d, _ := openModel(t, mem, 1)
	d.start()
	var history []map[uint16][]byte
	note := func() {
		c := map[uint16][]byte{}
		for k, v := range d.m {
			c[k] = v
		}
		history = append(history, c)
	}
	note()
	for range 300 {
		d.set(uint16(rng.IntN(8)), binary.LittleEndian.AppendUint64(make([]byte, rng.IntN(40)), rng.Uint64()))
		note()
	}
	older := 0
	for range 3000 {
		bad := bytes.Clone(mem)
		for range 1 + rng.IntN(4) {
			at := MinSize/4 + rng.IntN(3*MinSize/4)
			bad[at] ^= byte(1 + rng.IntN(255))
		}
		s, _ := openModel(t, bad, 1)
		i := slices.IndexFunc(history, func(h map[uint16][]byte) bool { return same(h, s.m) })
		if i < 0 {
			t.Fatalf("a state of %d kinds that never was", len(s.m))
		}
		if i < len(history)-1 {
			older++
		}
		s.start()
		s.set(1, []byte("on"))
		if again, _ := openModel(t, bad, 1); !same(again.m, s.m) {
			t.Fatal("what was written after the damage is lost")
		}
	}
	if older == 0 {
		t.Error("no damage was ever seen")
	}
}

func TestFallsBackToTheOtherCheckpoint(t *testing.T) {
	mem := make([]byte, MinSize)
	d, _ := openModel(t, mem, 1)
	d.start()
	d.set(1, []byte("old"))
	d.l.checkpoint()
	d.set(1, []byte("new"))
	part(mem, d.l.present)[checkpointHeader] ^= 1
	s, taken := openModel(t, mem, 1)
	if len(s.m) != 0 || taken.Items != 0 || taken.Records != 0 {
		t.Fatalf("%v, %+v: want the first checkpoint, which was empty", s.m, taken)
	}
	s.start()
	s.set(2, []byte("x"))
	part(mem, s.l.present)[0] ^= 1
	part(mem, partFirst+partSecond-s.l.present)[0] ^= 1
	if e, taken := openModel(t, mem, 1); len(e.m) != 0 || taken != (Taken{}) || Inspect(mem) != (Info{}) {
		t.Errorf("%v, %+v: want nothing", e.m, taken)
	}
	if !bytes.Equal(mem, make([]byte, len(mem))) {
		t.Error("a region in which nothing is valid was not emptied")
	}
}

func TestVersion(t *testing.T) {
	mem := make([]byte, MinSize)
	d, _ := openModel(t, mem, 1)
	d.start()
	d.set(1, []byte("x"))
	d.l.Words()[3] = 7
	s, taken := openModel(t, mem, 2)
	if len(s.m) != 0 || taken != (Taken{Foreign: true}) || s.l.Words()[3] != 0 {
		t.Errorf("%v, %+v: another version's state was taken", s.m, taken)
	}
	s.start()
	if i := Inspect(mem); i.Version != 2 || i.Records != 0 || i.Checkpoints != 1 {
		t.Errorf("%+v", i)
	}
}

func TestInspect(t *testing.T) {
	mem := make([]byte, 4*MinSize)
	d, _ := openModel(t, mem, 9)
	d.start()
	a := Inspect(mem)
	d.set(1, []byte("12345"))
	d.set(2, []byte("123456789"))
	b := Inspect(mem)
	want := Info{Checkpoints: 1, Version: 9, Generation: 1, Sequence: 2, Records: 2, Bytes: checkpointHeader + 2*recordHeader + 8 + 16}
	if b != want || !b.Newer(a) || a.Newer(b) {
		t.Errorf("%+v after %+v, want %+v", b, a, want)
	}
	d.l.checkpoint()
	c := Inspect(mem)
	want = Info{Checkpoints: 2, Version: 9, Generation: 2, Sequence: 2, Items: 2, Bytes: checkpointHeader + 2*itemHeader + 8 + 16}
	if c != want || !c.Newer(b) {
		t.Errorf("%+v, want %+v", c, want)
	}
}

func TestSizes(t *testing.T) {
	for _, n := range []int{0, 1, MinSize - 1, MinSize / 2, 3 * MinSize, 2 * MaxSize} {
		if _, _, err := Open(make([]byte, n), 1, nil); !errors.Is(err, ErrSize) || Inspect(make([]byte, n)) != (Info{}) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	mem := make([]byte, MinSize)
	d, _ := openModel(t, mem, 1)
	d.start()
	// A record that fills the journal to the last byte, and one that does not fit a checkpoint.
	full := make([]byte, MinSize/4-recordHeader)
	d.set(1, full)
	if d.l.end != MinSize/4 || Inspect(mem).Records != 1 {
		t.Fatalf("end %d, %+v", d.l.end, Inspect(mem))
	}
	d.set(2, []byte("small"))
	if i := Inspect(mem); d.l.LeftOut() != 1 || i.Items != 1 || i.Records != 0 {
		t.Errorf("%d left out, %+v", d.l.LeftOut(), i)
	}
	s, _ := openModel(t, mem, 1)
	if string(s.m[2]) != "small" || len(s.m) != 1 {
		t.Errorf("%v", s.m)
	}
	var none *Log
	none.Append(1, nil)
	none.Start(nil)
	if none.Words() != nil || none.LeftOut() != 0 {
		t.Error("a nil log keeps something")
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	d, _ := openModel(t, make([]byte, MinSize), 1)
	d.start()
	data := make([]byte, 24)
	if n := testing.AllocsPerRun(1000, func() { d.l.Append(1, data) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAppend(b *testing.B) {
	d, _ := openModel(b, make([]byte, 1<<20), 1)
	d.start()
	data := make([]byte, 24)
	for b.Loop() {
		d.l.Append(1, data)
	}
}

// FuzzOpen gives a successor any region at all.
func FuzzOpen(f *testing.F) {
	mem := make([]byte, MinSize)
	d, _ := openModel(f, mem, 1)
	d.start()
	d.set(1, []byte("hello"))
	d.l.checkpoint()
	d.set(2, []byte("world"))
	f.Add(mem[MinSize/4:], true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		mem := make([]byte, MinSize)
		copy(mem[MinSize/4:], b)
		if mend { // with checksums that are right
			for _, i := range []int{partFirst, partSecond} {
				p := part(mem, i)
				if n := int(binary.LittleEndian.Uint32(p[12:])); n <= len(p)-checkpointHeader {
					binary.LittleEndian.PutUint32(p, checksum(p[4:checkpointHeader+n]))
				}
			}
			p := part(mem, partJournal)
			if n := int(binary.LittleEndian.Uint16(p[6:])); n <= len(p)-recordHeader {
				binary.LittleEndian.PutUint32(p, checksum(p[4:recordHeader+n]))
			}
		}
		before := Inspect(mem)
		s, taken := openModel(t, mem, 1)
		if before.Version == 1 && (taken.Items != before.Items || taken.Records != before.Records) {
			t.Fatalf("%+v, but %+v was taken over", before, taken)
		}
		s.start()
		s.set(3, []byte("on"))
		if again, _ := openModel(t, mem, 1); !bytes.Equal(again.m[3], []byte("on")) {
			t.Fatal("the region cannot be written to any more")
		}
	})
}
