package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// cpuMemory is the guest memory of the VMs that compute, in bytes: mem_copy needs two buffers of 256 MiB.
const cpuMemory = 1 << 30

// cpu returns the benchmark that runs one of the example bench's pieces of work as a guest and as a host process.
func cpu(name string, atLeast float64) func(*bench) ([]Result, error) {
	return func(b *bench) ([]Result, error) {
		program, err := b.example("bench")
		if err != nil {
			return nil, err
		}
		// The first time in a process does not count: it grows the heap.
		args := []string{"-run", name, "-runs", "2"}
		ours := func() (time.Duration, error) {
			r, w, err := os.Pipe()
			if err != nil {
				return 0, err
			}
			defer r.Close()
			g, err := b.startGuest(program, args, cpuMemory, nil, w)
			w.Close()
			if err != nil {
				return 0, err
			}
			out, err := io.ReadAll(r)
			if _, werr := g.wait(); werr != nil {
				return 0, werr
			}
			return lastTime(out, err)
		}
		theirs := func() (time.Duration, error) { return lastTime(hostCommand(program, args...).Output()) }
		a, p, err := inTurn(b, name, b.rounds(5, 11), ours, theirs)
		if err != nil {
			return nil, err
		}
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		r := newResult(name, "ms", less, values(a, ms), "the same program as a host process", values(p, ms))
		r.bar.ratio = atLeast
		return []Result{r}, nil
	}
}

// lastTime returns the time in the last line of the example's output.
func lastTime(out []byte, err error) (time.Duration, error) {
	if err != nil {
		return 0, err
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var r struct{ Ns int64 }
	if err := json.Unmarshal(lines[len(lines)-1], &r); err != nil || r.Ns <= 0 {
		return 0, fmt.Errorf("no time in the example's output %q: %w", out, err)
	}
	return time.Duration(r.Ns), nil
}
