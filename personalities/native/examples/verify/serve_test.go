package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// dialogue is a server on a disk, and its other end.
type dialogue struct {
	t     *testing.T
	in    *io.PipeWriter
	lines *bufio.Scanner
	ended chan error
}

func talk(t *testing.T, d Disk, dirty bool) *dialogue {
	t.Helper()
	in, inW := io.Pipe()
	outR, out := io.Pipe()
	g := &dialogue{t: t, in: inW, lines: bufio.NewScanner(outR), ended: make(chan error, 1)}
	r := &Run{Seed: 5, Workers: 2, Area: 1 << 20}
	go func() {
		g.ended <- r.serve(d, in, out, dirty)
		out.Close()
	}()
	if !g.lines.Scan() || g.lines.Text() != "ready" {
		t.Fatal(g.lines.Text(), g.lines.Err())
	}
	t.Cleanup(func() {
		inW.Close()
		for g.lines.Scan() {
		}
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
	})
	return g
}

// ask gives a command and returns the lines until its answer, which is the last one.
func (g *dialogue) ask(command string) (lines []string) {
	g.t.Helper()
	fmt.Fprintln(g.in, command)
	for g.lines.Scan() {
		lines = append(lines, g.lines.Text())
		if strings.HasPrefix(g.lines.Text(), command) {
			return lines
		}
	}
	g.t.Fatalf("%s: the server ended after %q", command, lines)
	return nil
}

func TestServe(t *testing.T) {
	d := &memDisk{b: make([]byte, 64*blockSize)}
	g := talk(t, d, false)
	fmt.Fprintln(g.in, "pace 100")
	for n := range 20 {
		if got := g.ask(fmt.Sprint("probe ", n)); len(got) != 1 {
			t.Error(got)
		}
	}
	fmt.Fprintln(g.in, "pace 0")
	if got := g.ask("check 1"); len(got) != 1 {
		t.Error(got)
	}
	table := g.ask("table 1")
	image := strings.Join(table[:len(table)-1], "\n")
	r := &Run{Seed: 5}
	if n, err := r.checkTable(d, strings.NewReader(image)); err != nil || n != len(table)-1 || n == 0 {
		t.Error(n, err)
	}
	d.b[5] ^= 1
	d.b[40*blockSize+5] ^= 1
	if n, err := r.checkTable(d, strings.NewReader(image)); err == nil {
		t.Errorf("%d blocks, and a changed one among them", n)
	}
	for _, s := range []string{"block", "block 1 2 3", "block x 1", "block 1 y"} {
		if _, err := r.checkTable(d, strings.NewReader(s)); err == nil {
			t.Errorf("took %q", s)
		}
	}
	for _, s := range []string{"probe", "x 1", "pace -1"} {
		fmt.Fprintln(g.in, s)
		if !g.lines.Scan() || !strings.HasPrefix(g.lines.Text(), "error ") {
			t.Errorf("%q is answered by %q", s, g.lines.Text())
		}
	}
}

// TestServeErrors: a write that failed may have left the old content or the new, and any other is found out.
func TestServeErrors(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	broken := errors.New("broken")
	failed := 0
	d := &memDisk{b: make([]byte, 64*blockSize), bad: func(d *memDisk, p []byte, off int64) (bool, error) {
		switch rnd.IntN(6) {
		case 0:
			failed++
			copy(d.b[off:], p[:rnd.IntN(len(p)/sectorSize)*sectorSize])
			return false, broken
		case 1:
			failed++
			return false, broken
		}
		return false, nil
	}}
	g := talk(t, d, false)
	told := 0
	for n := range 200 {
		for _, l := range g.ask(fmt.Sprint("probe ", n)) {
			if strings.HasPrefix(l, "bad") {
				t.Fatal(l)
			}
			if strings.HasPrefix(l, "error") {
				told++
			}
		}
	}
	if got := g.ask("check 1"); len(got) != 1 {
		t.Error(got)
	}
	if told != failed || failed == 0 {
		t.Errorf("%d writes failed, %d were told of", failed, told)
	}
}

// TestFaults: each kind of fault gets its name.
func TestFaults(t *testing.T) {
	const seed, block = 7, 3
	whole := func(seed, block, op uint64) []byte {
		p := make([]byte, blockSize)
		fill(p, seed, block, op)
		return p
	}
	half := func(a, b []byte) []byte { return append(bytes.Clone(a[:blockSize/2]), b[blockSize/2:]...) }
	none := make([]byte, blockSize)
	flipped := whole(seed, block, 9)
	flipped[100] ^= 4
	for name, c := range map[string]struct {
		p    []byte
		may  []uint64
		want fault
	}{
		"right":                     {whole(seed, block, 9), []uint64{9}, ""},
		"one of two":                {whole(seed, block, 9), []uint64{8, 9}, ""},
		"two of two":                {half(whole(seed, block, 8), whole(seed, block, 9)), []uint64{8, 9}, ""},
		"never written":             {none, []uint64{0}, ""},
		"the first write failed":    {half(none, whole(seed, block, 1)), []uint64{0, 1}, ""},
		"zeros":                     {none, []uint64{9}, lost},
		"older":                     {whole(seed, block, 8), []uint64{9}, stale},
		"of another run":            {whole(6, block, 9), []uint64{9}, stale},
		"of another block":          {whole(seed, 4, 9), []uint64{9}, misplaced},
		"of another block, unasked": {whole(seed, 4, 9), []uint64{0}, misplaced},
		"of two operations":         {half(whole(seed, block, 8), whole(seed, block, 9)), []uint64{9}, torn},
		"half zeros":                {half(none, whole(seed, block, 9)), []uint64{9}, torn},
		"a bit":                     {flipped, []uint64{9}, changed},
		"noise":                     {bytes.Repeat([]byte{0xa5}, blockSize), []uint64{9}, changed},
	} {
		err := check(c.p, seed, block, c.may)
		w := new(wrong)
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &w) || w.fault != c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
