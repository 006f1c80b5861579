package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// How the kind fill goes about it, in bytes.
const (
	fillStep  = 256 << 10
	fillLeave = 1 << 20 // what it leaves to itself of the VM's memory
	pageBytes = 4096
)

// fill waits for SIGUSR1, uses all of the VM's memory, sits on it until the end, and then looks whether everything is still there.
func fill(c *config) (r Result) {
	usr := make(chan os.Signal, 1)
	signal.Notify(usr, syscall.SIGUSR1)
	select {
	case <-usr:
	case <-c.end():
		return r
	}
	var pieces [][]byte
	for !c.stopped.Load() {
		var si syscall.Sysinfo_t
		if err := syscall.Sysinfo(&si); err != nil || si.Freeram*uint64(si.Unit) < fillStep+fillLeave {
			break
		}
		b, err := syscall.Mmap(-1, 0, fillStep, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			break
		}
		for off := 0; off < len(b); off += pageBytes {
			r.Work++
			binary.LittleEndian.PutUint64(b[off:], r.Work)
		}
		pieces = append(pieces, b)
	}
	fmt.Fprintln(os.Stderr, "filled", r.Work, "pages")
	<-c.end()
	page := uint64(0)
	for _, b := range pieces {
		for off := 0; off < len(b); off += pageBytes {
			if page++; binary.LittleEndian.Uint64(b[off:]) != page {
				fmt.Fprintln(os.Stderr, "load: page", page, "is not what it was")
				os.Exit(1)
			}
		}
	}
	return r
}

// Of the kind walk.
const (
	walkBytes  = 32 << 20
	walkWindow = 100 * time.Millisecond
)

// walk computes and goes through memory on one thread, and notes how much it did in each window of walkWindow.
func walk(c *config) (r Result) {
	b := make([]byte, walkBytes)
	x, at, done := uint64(1), 0, 0
	for k := 1; !c.over(); {
		for range 16 {
			x = step(x)
			for range 64 { // 64 pages, a cache line of each
				at = (at + pageBytes + 64) % len(b)
				b[at] += byte(x)
			}
		}
		done++
		for ; time.Since(c.begin) >= time.Duration(k)*walkWindow; k++ {
			r.Windows = append(r.Windows, done)
			done = 0
		}
		r.Work++
	}
	sink.Add(x)
	return r
}
