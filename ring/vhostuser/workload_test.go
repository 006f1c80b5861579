package vhostuser_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/virtioblk"
)

// workload writes and reads random blocks and checks what it reads against what it wrote.
type workload struct {
	t      testing.TB
	c      *ringtest.BlkClient
	rng    *rand.Rand
	blocks int // of blockLen bytes each
	gen    []uint64
	slots  []pending
	idle   []int
	locked map[int]bool // blocks with a request outstanding
	Done   int
}

type pending struct {
	block int
	typ   uint32
	gen   uint64
}

const blockLen = 4096

var crcTable = crc64.MakeTable(crc64.ECMA)

func newWorkload(t testing.TB, c *ringtest.BlkClient, slots, blocks int) *workload {
	seed := rand.Uint64()
	t.Logf("workload seed %d", seed)
	w := &workload{
		t: t, c: c, rng: rand.New(rand.NewPCG(seed, 1)), blocks: blocks,
		gen: make([]uint64, blocks), slots: make([]pending, slots), locked: map[int]bool{},
	}
	for i := range slots {
		w.idle = append(w.idle, i)
	}
	return w
}

// fill makes the content of a block: a pattern that names block and generation, and its checksum.
func fill(b []byte, block int, gen uint64) {
	binary.LittleEndian.PutUint64(b, uint64(block))
	binary.LittleEndian.PutUint64(b[8:], gen)
	x := uint64(block)<<32 ^ gen | 1
	for i := 16; i < len(b)-8; i += 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	binary.LittleEndian.PutUint64(b[len(b)-8:], crc64.Checksum(b[:len(b)-8], crcTable))
}

// submit fills up to n idle slots with requests.
func (w *workload) submit(n int) {
	for ; n > 0 && len(w.idle) > 0; n-- {
		slot := w.idle[len(w.idle)-1]
		block := w.rng.IntN(w.blocks)
		if w.locked[block] {
			continue
		}
		p := pending{block: block, typ: virtioblk.TypeIn, gen: w.gen[block]}
		length := uint32(blockLen)
		switch k := w.rng.IntN(20); {
		case k < 9:
			p.typ, p.gen = virtioblk.TypeOut, p.gen+1
			fill(w.c.Data(slot)[:blockLen], block, p.gen)
		case k == 9:
			p.typ, length = virtioblk.TypeFlush, 0
		default:
			clear(w.c.Data(slot)[:blockLen])
		}
		sector := uint64(block) * blockLen / virtioblk.SectorSize
		if p.typ == virtioblk.TypeFlush {
			sector = 0
		} else {
			w.locked[block] = true
		}
		if err := w.c.Submit(slot, p.typ, sector, length); err != nil {
			w.t.Fatalf("submit: %v", err)
		}
		w.idle = w.idle[:len(w.idle)-1]
		w.slots[slot] = p
	}
	if err := w.c.Publish(); err != nil {
		w.t.Fatalf("publish: %v", err)
	}
}

// complete checks one completion.
func (w *workload) complete(slot int, status byte) {
	p := w.slots[slot]
	w.idle = append(w.idle, slot)
	w.Done++
	if status != virtioblk.StatusOK {
		w.t.Fatalf("request %+v: status %d", p, status)
	}
	if p.typ == virtioblk.TypeFlush {
		return
	}
	delete(w.locked, p.block)
	if p.typ == virtioblk.TypeOut {
		w.gen[p.block] = p.gen
		return
	}
	if err := w.check(w.c.Data(slot)[:blockLen], p.block); err != nil {
		w.t.Fatal(err)
	}
}

func (w *workload) check(got []byte, block int) error {
	want := make([]byte, blockLen)
	if w.gen[block] > 0 {
		fill(want, block, w.gen[block])
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("block %d: generation %d of block %d read, want generation %d",
			block, binary.LittleEndian.Uint64(got[8:]), binary.LittleEndian.Uint64(got), w.gen[block])
	}
	return nil
}

// run performs n requests.
func (w *workload) run(n int) {
	for goal := w.Done + n; w.Done < goal; {
		w.submit(1 + w.rng.IntN(len(w.slots)))
		if len(w.idle) == len(w.slots) {
			continue
		}
		if err := w.c.Reap(10*time.Second, w.complete); err != nil {
			w.t.Fatalf("after %d requests: %v", w.Done, err)
		}
	}
}

// drain waits for every outstanding request.
func (w *workload) drain() {
	for len(w.idle) < len(w.slots) {
		if err := w.c.Reap(10*time.Second, w.complete); err != nil {
			w.t.Fatalf("after %d requests: %v", w.Done, err)
		}
	}
}
