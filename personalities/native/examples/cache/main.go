// Command cache is a native guest with a cache that it can do without. Asked for memory, it drops what it must; told to ignore that, it loses memory by force, finds out what
// it lost, and goes on.
//
//	grailctl run -d --name c --memory 128M -- ./cache -entries 64
//	grailctl reclaim c 32M
package main

import (
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/guest"
)

func main() {
	entries := flag.Int("entries", 64, "entries of the cache, of 1 MiB each")
	ignore := flag.Bool("ignore", false, "do not give memory back when asked")
	fragile := flag.Bool("fragile", false, "do not survive the loss of memory")
	last := flag.Duration("for", time.Minute, "how long to work")
	flag.Parse()
	log.SetFlags(0)
	c := &cache{entries: make([][]byte, *entries)}
	for i := range c.entries {
		if err := c.fill(i); err != nil {
			log.Fatal("cache: ", err)
		}
	}
	if !*ignore {
		if err := guest.OnReclaim(c.give); err != nil {
			log.Fatal("cache: no orders here: ", err)
		}
	}
	fmt.Printf("the cache has %d entries\n", *entries)
	debug.SetPanicOnFault(!*fragile)
	for end := time.Now().Add(*last); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for range 8 {
			if err := c.look(rand.IntN(*entries)); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
}

// entryBytes is the size of an entry.
const entryBytes = 1 << 20

// cache is what the program works with. Entry i holds bytes i, everywhere; nil: it was dropped.
type cache struct {
	mu      sync.Mutex
	entries [][]byte
}

// fill makes an entry. The caller holds c.mu, or is alone.
func (c *cache) fill(i int) error {
	b, err := unix.Mmap(-1, 0, entryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	if err := guest.Expendable(b); err != nil {
		return err
	}
	for k := range b {
		b[k] = byte(i)
	}
	c.entries[i] = b
	return nil
}

// give drops as many entries as the host wants back, and some more for what the bound is short of.
func (c *cache) give(r guest.Reclaim) {
	c.mu.Lock()
	dropped := 0
	for i := range c.entries {
		if uint64(dropped)*entryBytes >= r.Excess() {
			break
		}
		if c.entries[i] != nil {
			c.drop(i)
			dropped++
		}
	}
	c.mu.Unlock()
	guest.ReclaimHeap(r)
	fmt.Printf("asked to keep %d MiB of %d in use: dropped %d entries\n", r.Bytes>>20, r.Used>>20, dropped)
}

// drop forgets an entry. The caller holds c.mu.
func (c *cache) drop(i int) {
	if err := unix.Munmap(c.entries[i]); err != nil {
		log.Fatal("cache: drop: ", err)
	}
	c.entries[i] = nil
}

// look reads an entry, if it is there. An entry that was taken by force is dropped.
func (c *cache) look(i int) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.entries[i]
	if b == nil {
		return nil
	}
	defer func() {
		if f, ok := recover().(interface{ Addr() uintptr }); ok {
			err = c.lost(f.Addr())
		}
	}()
	for _, v := range b {
		if v != byte(i) {
			return fmt.Errorf("entry %d holds %d", i, v)
		}
	}
	return nil
}

// lost drops the entries of which something was taken. The caller holds c.mu.
func (c *cache) lost(addr uintptr) error {
	taken, err := guest.Taken()
	if err != nil {
		return err
	}
	bytes, found, dropped := uint64(0), false, 0
	for _, r := range taken {
		bytes += r.Len
		found = found || uint64(addr) >= r.Addr && uint64(addr) < r.Addr+r.Len
		for i, b := range c.entries {
			if b == nil {
				continue
			}
			if s := guest.Segment(b); s.Addr < r.Addr+r.Len && r.Addr < s.Addr+s.Len {
				c.drop(i)
				dropped++
			}
		}
	}
	if !found {
		return fmt.Errorf("address %#x was lost, and the host did not say so", addr)
	}
	fmt.Printf("%d MiB in %d pieces were taken: lost %d entries\n", bytes>>20, len(taken), dropped)
	return nil
}
