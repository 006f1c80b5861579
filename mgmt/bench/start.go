package main

import (
	"io"
	"os"
	"time"
)

// helloMemory is the guest memory of the VMs that only say hello, in bytes.
const helloMemory = 64 << 20

// startNative measures the time from the start of a grailvm to the first byte of its guest's output.
func startNative(b *bench) ([]Result, error) {
	program, err := b.example("hello")
	if err != nil {
		return nil, err
	}
	ours := func() (time.Duration, error) {
		return firstByte(func(w *os.File) (func() error, error) {
			g, err := b.startGuest(program, nil, helloMemory, nil, w)
			if err != nil {
				return nil, err
			}
			return func() error { _, err := g.wait(); return err }, nil
		})
	}
	theirs := func() (time.Duration, error) {
		return firstByte(func(w *os.File) (func() error, error) {
			c := hostCommand(program)
			c.Stdout = w
			return c.Wait, c.Start()
		})
	}
	a, p, err := inTurn(b, "start_native_ms", b.rounds(11, 31), ours, theirs)
	if err != nil {
		return nil, err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r := newResult("start_native_ms", "ms", less, values(a, ms), "the same program as a host process", values(p, ms))
	r.bar.most = 25
	if b.host.hardware {
		r.bar.most = 10
	}
	return []Result{r}, nil
}

// firstByte starts something whose output goes to w and returns how long that took until the first byte of output.
func firstByte(start func(w *os.File) (wait func() error, err error)) (time.Duration, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	begin := time.Now()
	wait, err := start(w)
	w.Close()
	if err != nil {
		return 0, err
	}
	var one [1]byte
	_, readErr := io.ReadFull(r, one[:])
	took := time.Since(begin)
	_, _ = io.Copy(io.Discard, r)
	if err := wait(); err != nil {
		return 0, err
	}
	return took, readErr
}

// inTurn runs ours and theirs n times each, in turn, the one or the other first, after one run of each that does not
// count.
func inTurn[T any](b *bench, name string, n int, ours, theirs func() (T, error)) (a, p []T, err error) {
	for i := -1; i < n; i++ {
		b.progress("%s: run %d of %d", name, max(i+1, 1), n)
		var x, y T
		if i%2 == 0 {
			x, err = ours()
		}
		if err == nil && theirs != nil {
			y, err = theirs()
		}
		if err == nil && i%2 != 0 {
			x, err = ours()
		}
		if err == nil {
			err = b.ctx.Err()
		}
		if err != nil {
			return nil, nil, err
		}
		if i >= 0 {
			a, p = append(a, x), append(p, y)
		}
	}
	return a, p, nil
}
