package serve

import (
	"sync"
	"testing"

	"github.com/grailos/grail/hv/guest"
)

// nullDevice does nothing, at once.
type nullDevice struct{}

func (nullDevice) Do(ops []Op) {
	for i := range ops {
		ops[i].Result = int64(ops[i].Length)
	}
}

// BenchmarkDisk is the cost of the way from a client's call to the device and back, both sides in this process,
// without the device.
func BenchmarkDisk(b *testing.B) {
	const size = 1 << 30
	b.Run("ReadAt-4k-qd1", func(b *testing.B) {
		r := newRig(b, 1, 128, 16<<20, size)
		_, stop := start(b, nullDevice{}, size, r)
		defer stop()
		p := make([]byte, 4096)
		b.ReportAllocs()
		for i := range b.N {
			if _, err := r.disk.ReadAt(p, int64(i%1000)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ReadAt-4k-goroutines32", func(b *testing.B) {
		r := newRig(b, 1, 128, 16<<20, size)
		_, stop := start(b, nullDevice{}, size, r)
		defer stop()
		b.ReportAllocs()
		var wg sync.WaitGroup
		for range 32 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				p := make([]byte, 4096)
				for i := range b.N / 32 {
					if _, err := r.disk.ReadAt(p, int64(i%1000)*4096); err != nil {
						b.Error(err)
						return
					}
				}
			}()
		}
		wg.Wait()
	})
	b.Run("Submit-4k-qd32", func(b *testing.B) {
		r := newRig(b, 1, 128, 16<<20, size)
		_, stop := start(b, nullDevice{}, size, r)
		defer stop()
		var bufs [32]*guest.Buffer
		var tickets [32]guest.Ticket
		for i := range bufs {
			bufs[i], _ = r.disk.Alloc(4096)
		}
		b.ReportAllocs()
		for i := range b.N + 32 {
			k := i % 32
			if i >= 32 {
				if err := r.disk.Wait(tickets[k]); err != nil {
					b.Fatal(err)
				}
			}
			if i < b.N {
				var err error
				if tickets[k], err = r.disk.Submit(guest.Read, int64(i%1000)*4096, bufs[k], 4096); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("ReadAt-1m", func(b *testing.B) {
		r := newRig(b, 1, 128, 16<<20, size)
		_, stop := start(b, nullDevice{}, size, r)
		defer stop()
		p := make([]byte, 1<<20)
		b.SetBytes(1 << 20)
		b.ReportAllocs()
		for i := range b.N {
			if _, err := r.disk.ReadAt(p, int64(i%1000)<<20); err != nil {
				b.Fatal(err)
			}
		}
	})
}
