package guest

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestPool checks against a map of units that pieces never overlap, and that everything joins again.
func TestPool(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, units := range []int{0, 1, 2, 3, 7, 64, 1000} {
		const base = 3 * poolUnit
		p := newPool(base, uint64(units)*poolUnit+poolUnit-1)
		if units == 0 {
			if p.max() != 0 {
				t.Error("empty pool has room")
			}
			continue
		}
		largest := p.max()
		used := make([]bool, units)
		type piece struct{ off, size uint64 }
		var held []piece
		for range 3000 {
			if rnd.IntN(2) == 0 && len(held) > 0 {
				i := rnd.IntN(len(held))
				h := held[i]
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
				for u := (h.off - base) / poolUnit; u < (h.off-base+h.size+poolUnit-1)/poolUnit; u++ {
					used[u] = false
				}
				p.release(h.off, h.size)
				continue
			}
			size := 1 + rnd.Uint64N(largest)
			if rnd.IntN(3) > 0 {
				size = 1 + size%(3*poolUnit)
			}
			size = min(size, largest)
			off, ok := p.tryAlloc(size)
			if !ok {
				continue
			}
			if off < base || off+size > base+uint64(units)*poolUnit || off%poolUnit != 0 {
				t.Fatalf("%d bytes at %#x", size, off)
			}
			for u := (off - base) / poolUnit; u < (off-base+size+poolUnit-1)/poolUnit; u++ {
				if used[u] {
					t.Fatalf("unit %d was given twice", u)
				}
				used[u] = true
			}
			held = append(held, piece{off, size})
		}
		for _, h := range held {
			p.release(h.off, h.size)
		}
		if off, ok := p.tryAlloc(largest); !ok {
			t.Errorf("%d units: the pieces did not join again", units)
		} else {
			p.release(off, largest)
		}
	}
}

// TestPoolWaits lets many callers share a pool that holds few of them.
func TestPoolWaits(t *testing.T) {
	p := newPool(0, 4*poolUnit)
	var wg sync.WaitGroup
	var mu sync.Mutex
	owner := map[uint64]int{}
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			size := uint64(1+i%4) * poolUnit
			for range 200 {
				off := p.alloc(size)
				mu.Lock()
				for u := off; u < off+size; u += poolUnit {
					if owner[u] != 0 {
						t.Errorf("unit at %d is given twice", u)
					}
					owner[u] = i + 1
				}
				mu.Unlock()
				mu.Lock()
				for u := off; u < off+size; u += poolUnit {
					owner[u] = 0
				}
				mu.Unlock()
				p.release(off, size)
			}
		}()
	}
	wg.Wait()
}
