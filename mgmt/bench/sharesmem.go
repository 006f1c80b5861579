package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/tenant"
)

// How shares_mem divides the host's memory.
const (
	memoryVMs     = 64
	leastReserved = 16 << 20  // of each VM, bytes
	mostReserved  = 128 << 20 // likewise
	besideGuest   = 24 << 20  // what the VMM of each has beside its guest, generously
	walkWindow    = 100 * time.Millisecond
)

// sharesMem measures how much slower a VM is while 64 others sit on all the memory that admission has to give away, all of it touched, than before and after.
func sharesMem(b *bench) (_ []Result, err error) {
	if b.engine != hv.EngineKVM {
		return nil, fmt.Errorf("%w: engine process does not prefault what is reserved", errSkipped)
	}
	d, err := b.startDaemon()
	if err != nil {
		return nil, err
	}
	length := time.Duration(b.rounds(5, 20)) * time.Second
	each := uint64(leastReserved)
	if !b.quick {
		// Half of what the host has left, so that the benchmark measures Grail and not a host that swaps.
		each = max(leastReserved, min(mostReserved, availableMemory()/2/memoryVMs-besideGuest)) &^ (2<<20 - 1)
	}
	if availableMemory() < memoryVMs*(each+besideGuest) {
		return nil, fmt.Errorf("%w: %d VMs need %d MiB of memory, which this host has not left", errSkipped, memoryVMs, memoryVMs*(each+besideGuest)>>20)
	}
	b.progress("shares_mem: %d VMs with %d MiB each, %v", memoryVMs, each>>20, length)

	neighbour := &sharer{name: "neighbour", kind: "walk", guarantee: 500}
	defer func() { err = errors.Join(err, b.endShare(neighbour)) }()
	if err := b.startShare(neighbour); err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := b.narrowHost(memoryVMs * int64(each)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.hostMemory(0)) }()
	had := map[string]float64{} // processor time of the neighbour, in seconds, in the phases
	phase := func(name string) error {
		x, err := b.usage(settle)
		if err != nil {
			return err
		}
		y, err := b.usage(length)
		if err != nil {
			return err
		}
		if u, v := x[neighbour.name], y[neighbour.name]; u != nil && v != nil {
			had[name] = float64(v.UsedNs-u.UsedNs) / float64(v.Time.Sub(u.Time))
		}
		return nil
	}
	if err := phase("before"); err != nil {
		return nil, err
	}
	before := time.Since(begun)

	defer func() {
		for i := range memoryVMs {
			if rerr := d.RemoveVM(b.ctx, memoryVM(i), true); rerr != nil && api.KindOf(rerr) != api.NotFound {
				err = errors.Join(err, rerr)
			}
		}
	}()
	for i := range memoryVMs {
		if err := b.startReserved(memoryVM(i), each); err != nil {
			return nil, fmt.Errorf("VM %d of %d: %w", i+1, memoryVMs, err)
		}
	}
	refusal := b.startReserved(memoryVM(memoryVMs), leastReserved)
	if refusal == nil || api.KindOf(refusal) != api.Refused || !strings.Contains(refusal.Error(), "has 0 free of") {
		return nil, fmt.Errorf("VM %d was not refused with the arithmetic: %v", memoryVMs+1, refusal)
	}
	touching := time.Since(begun)
	used, err := b.touched(each)
	if err != nil {
		return nil, err
	}
	filled := time.Since(begun)
	if err := phase("beside"); err != nil {
		return nil, err
	}
	sitting := time.Since(begun)

	// All at once, too: each looks whether its memory is what it was.
	for i := range memoryVMs {
		if err := d.SignalVM(b.ctx, memoryVM(i), int(unix.SIGTERM)); err != nil {
			return nil, fmt.Errorf("VM %d is not there any more: %w", i+1, err)
		}
	}
	for i := range memoryVMs {
		v, err := d.WaitVM(b.ctx, memoryVM(i), 1)
		if err != nil {
			return nil, err
		}
		if r := v.Report; r == nil || r.Cause != hv.CauseExit || r.Code != 0 {
			return nil, fmt.Errorf("VM %d of %d did not keep its memory: %+v", i+1, memoryVMs, r)
		}
	}
	// The machine may have become slower or faster by itself.
	ended := time.Since(begun)
	if err := phase("after"); err != nil {
		return nil, err
	}
	after := time.Since(begun)
	if err := d.SignalVM(b.ctx, "vm-"+neighbour.name, int(unix.SIGTERM)); err != nil {
		return nil, err
	}
	if err := b.finishShare(neighbour); err != nil {
		return nil, err
	}
	rate := func(from, to time.Duration) float64 {
		w := neighbour.result.Windows
		i, k := int(from/walkWindow)+1, min(int(to/walkWindow)-1, len(w))
		if i >= k {
			return 0
		}
		return median(values(w[i:k], func(n int) float64 { return float64(n) }))
	}
	first, last := rate(settle, before), rate(ended+settle, after)
	was, is, meanwhile := (first+last)/2, rate(filled+settle, sitting), rate(touching, filled)
	if first == 0 || last == 0 || is == 0 {
		return nil, fmt.Errorf("the neighbour counted %d windows, too few", len(neighbour.result.Windows))
	}
	r := newResult("shares_mem", "% slower", less, []float64{max(100*(was/is-1), 0)}, "", nil)
	r.bar.most = 2
	r.note = fmt.Sprintf("asked %d MiB for each of %d VMs, the last MiB of what the host gives away; got %d MiB prefaulted and kept for each, of which its guest uses %d MiB at least; none was killed, and all kept what they wrote\n"+
		"all touched it within %.1f s, during which the neighbour did %.1f %% less; %.0f rounds in 100 ms before, %.0f beside them and %.0f after,\n"+
		"with %.0f, %.0f and %.0f %% of a processor: the host's other processes want some, too\none more VM: %v",
		each>>20, memoryVMs, each>>20, used>>20, (filled - touching).Seconds(), 100*(1-meanwhile/was), first, is, last, 100*had["before"], 100*had["beside"], 100*had["after"], refusal)
	return []Result{r}, nil
}

func memoryVM(i int) string { return fmt.Sprintf("mem%d", i) }

// pause waits.
func (b *bench) pause(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// availableMemory is how much memory the host has left, in bytes (proc(5), /proc/meminfo).
func availableMemory() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// hostMemory sets how much memory the host gives away; 0: all.
func (b *bench) hostMemory(bytes int64) error {
	patch, err := json.Marshal(map[string]any{"memory": map[string]any{"reserved": bytes}})
	if err != nil {
		return err
	}
	_, err = b.daemon.SetTenant(b.ctx, "/", api.SetShare{Share: patch})
	return err
}

// narrowHost has the host give away so much memory and not a byte more, beyond what is given away now.
func (b *bench) narrowHost(free int64) error {
	tree, err := b.daemon.Tenants(b.ctx)
	if err != nil {
		return err
	}
	return b.hostMemory(tree[0].Held[string(tenant.MemoryBytes)] + free)
}

// startReserved starts a VM whose whole memory is reserved.
func (b *bench) startReserved(name string, bytes uint64) error {
	return b.startLoad(api.VMConfig{Name: name, MemoryBytes: bytes, Args: []string{"-kind", "fill", "-for", longest.String()},
		Share: tenant.Share{Memory: tenant.Memory{Reserved: int64(bytes)}}}, nil)
}

// touched tells all VMs to use their memory, waits until they use it all but for what their programs leave to themselves, and returns how much the one
// that uses least uses.
func (b *bench) touched(each uint64) (least uint64, err error) {
	const leave = 2 << 20
	var told time.Time
	for i, end := 0, time.Now().Add(2*time.Minute); i < memoryVMs; {
		// Again, because a program that has only just begun does not hear of it.
		if time.Since(told) >= time.Second {
			told = time.Now()
			for n := i; n < memoryVMs; n++ {
				if err := b.daemon.SignalVM(b.ctx, memoryVM(n), int(unix.SIGUSR1)); err != nil {
					return 0, err
				}
			}
		}
		v, err := b.daemon.VM(b.ctx, memoryVM(i))
		if err != nil {
			return 0, err
		}
		if v.State != api.Running {
			return 0, fmt.Errorf("VM %d of %d has ended: %+v", i+1, memoryVMs, v.Report)
		}
		if v.Status != nil && v.Status.Stats.MemoryUsed+leave >= each {
			if least == 0 || v.Status.Stats.MemoryUsed < least {
				least = v.Status.Stats.MemoryUsed
			}
			i++
			continue
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("VM %d of %d has not used its memory: %+v", i+1, memoryVMs, v.Status)
		}
		if err := b.pause(20 * time.Millisecond); err != nil {
			return 0, err
		}
	}
	return least, nil
}
