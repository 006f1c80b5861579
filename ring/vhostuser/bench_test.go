package vhostuser_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/virtioblk"
)

// BenchmarkRead4k measures random reads from the page cache over one queue, against qemu-storage-daemon and
// against the minimal server of ringtest, each in its own process.
func BenchmarkRead4k(b *testing.B) {
	for name, start := range map[string]func(testing.TB, string) *backend{"qemu-storage-daemon": qemuBackend, "ringtest": ourBackend} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/depth=%d", name, depth), func(b *testing.B) {
				disk := tempDisk(b)
				if _, err := disk.WriteAt(make([]byte, diskBlocks*blockLen), 0); err != nil {
					b.Fatal(err)
				}
				be := start(b, disk.Name())
				be.start()
				defer be.kill()
				f := dialWait(b, be.path, allOptions)
				c, err := ringtest.NewBlkClient(128, depth, blockLen, 0)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				if err := c.Attach(f, 0); err != nil {
					b.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(1, 2))
				idle := make([]int, 0, depth)
				for i := range depth {
					idle = append(idle, i)
				}
				done := func(slot int, status byte) {
					if status != virtioblk.StatusOK {
						b.Fatalf("status %d", status)
					}
					idle = append(idle, slot)
				}
				b.ReportAllocs()
				b.ResetTimer()
				for sent, got := 0, 0; got < b.N; {
					for len(idle) > 0 && sent < b.N {
						slot := idle[len(idle)-1]
						idle = idle[:len(idle)-1]
						block := uint64(rng.IntN(diskBlocks))
						if err := c.Submit(slot, virtioblk.TypeIn, block*blockLen/virtioblk.SectorSize, blockLen); err != nil {
							b.Fatal(err)
						}
						sent++
					}
					if err := c.Publish(); err != nil {
						b.Fatal(err)
					}
					was := len(idle)
					if err := c.Reap(10*time.Second, done); err != nil {
						b.Fatal(err)
					}
					got += len(idle) - was
				}
			})
		}
	}
}
