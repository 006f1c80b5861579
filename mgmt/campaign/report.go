package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report collects the rows of a campaign.
type report struct {
	out      io.Writer
	terminal bool

	mu    sync.Mutex
	rows  []row
	looks []row // at whole rigs
	lines []string
}

func newReport(out io.Writer) *report {
	p := &report{out: out}
	if f, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

// add takes the row of a fault. What a person must see is printed with the next line of progress.
func (p *report) add(r row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows = append(p.rows, r)
	p.mention(r)
}

// look takes the row of a last look at a rig.
func (p *report) look(r row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks = append(p.looks, r)
	p.mention(r)
}

// mention is called with p.mu held.
func (p *report) mention(r row) {
	if r.Verdict != failed && r.Verdict != silent {
		return
	}
	name := r.Kind
	if r.Second != "" {
		name += "+" + r.Second
	}
	p.lines = append(p.lines, fmt.Sprintf("campaign: %s: fault %d, seed %d, %s of %s, engine %s: %s (%s); evidence: %s", r.Verdict, r.ID, r.Seed, name, r.Target, r.Engine, r.Why, r.What, r.Evidence))
}

// Faults that count are those that were brought about.
func (p *report) countOf(v ...verdict) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rows {
		if slices.Contains(v, r.Verdict) {
			n++
		}
	}
	return n
}

func (p *report) done() int { return p.countOf(recovered, degraded, silent, failed) }

func (p *report) lost() int {
	n := p.countOf(failed)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.looks {
		if r.Verdict == failed {
			n++
		}
	}
	return n
}

// How often progress is told to a person who watches, and to a file.
const (
	livePause = time.Second
	linePause = 10 * time.Second
)

// live tells of the progress until ctx ends.
func (p *report) live(ctx context.Context, begin time.Time) {
	tick := time.NewTicker(livePause)
	defer tick.Stop()
	last := time.Time{}
	for more := true; more; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			more = false
		}
		p.mu.Lock()
		lines := p.lines
		p.lines = nil
		p.mu.Unlock()
		wipe := ""
		if p.terminal {
			wipe = "\r\x1b[K"
		}
		for _, l := range lines {
			fmt.Fprintf(p.out, "%s%s\n", wipe, l)
		}
		since := time.Since(begin)
		n := p.done()
		state := fmt.Sprintf("campaign: %d faults, %.1f a second, %d degraded, %d SILENT, %d LOST, %.0f s",
			n, float64(n)/since.Seconds(), p.countOf(degraded), p.countOf(silent), p.lost(), since.Seconds())
		switch {
		case p.terminal && more:
			fmt.Fprint(p.out, wipe+state)
		case p.terminal:
			fmt.Fprintln(p.out, wipe+state)
		case time.Since(last) >= linePause || !more:
			last = time.Now()
			fmt.Fprintln(p.out, state)
		}
	}
}

// sums are the faults of one kind on one target.
type sums struct {
	verdicts map[verdict]int
	times    []float64
}

func (s *sums) add(r row) {
	if s.verdicts == nil {
		s.verdicts = map[verdict]int{}
	}
	s.verdicts[r.Verdict]++
	if r.RecoverMs > 0 {
		s.times = append(s.times, r.RecoverMs)
	}
}

func (s *sums) line(w io.Writer, kind, target string) {
	v := s.verdicts
	fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%d\t\n", kind, target, v[recovered]+v[degraded]+v[silent]+v[failed],
		v[recovered], v[degraded], v[silent], v[failed], quantile(s.times, 0.5), quantile(s.times, 0.99), v[refused])
}

// quantile returns one as text, or a dash.
func quantile(times []float64, part float64) string {
	if len(times) == 0 {
		return "-"
	}
	slices.Sort(times)
	return fmt.Sprintf("%.0f", times[min(int(part*float64(len(times))), len(times)-1)])
}

// table prints the sums.
func (p *report) table(took time.Duration) {
	type key struct{ kind, target string }
	p.mu.Lock()
	defer p.mu.Unlock()
	by := map[key]*sums{}
	var total, twice sums
	var stalls, others []float64
	for _, r := range p.rows {
		k := key{r.Kind, r.Target}
		if by[k] == nil {
			by[k] = &sums{}
		}
		by[k].add(r)
		total.add(r)
		if r.Second != "" {
			twice.add(r)
		}
		if r.StallMs > 0 {
			stalls = append(stalls, r.StallMs)
		}
		if r.Bystander > 0 {
			others = append(others, r.Bystander)
		}
	}
	w := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "kind\ttarget\tfaults\trecovered\tdegraded\tSILENT\tLOST\tmedian ms\t99 % ms\trefused\t\n")
	for _, k := range slices.SortedFunc(maps.Keys(by), func(a, b key) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.target, b.target)) }) {
		by[k].line(w, k.kind, k.target)
	}
	total.line(w, "all", "")
	twice.line(w, "of these with a second fault", "")
	_ = w.Flush()
	bad := 0
	for _, r := range p.looks {
		if r.Verdict == failed {
			bad++
		}
	}
	fmt.Fprintf(p.out, "campaign: longest request of a harmed driver's clients: median %s ms, 99 %% %s ms; of VMs that had nothing to do with the fault: median %s ms, 99 %% %s ms\n",
		quantile(stalls, 0.5), quantile(stalls, 0.99), quantile(others, 0.5), quantile(others, 0.99))
	fmt.Fprintf(p.out, "campaign: %d whole disks were compared with what was written to them, %d are wrong; %.0f s in all\n", len(p.looks), bad, took.Seconds())
}

// json writes the results: what it was, and a row a fault.
func (p *report) json(w io.Writer, seed uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortFunc(p.rows, func(a, b row) int { return cmp.Compare(a.ID, b.ID) })
	verdicts := map[verdict]int{recovered: 0, degraded: 0, silent: 0, failed: 0, refused: 0}
	for _, r := range p.rows {
		verdicts[r.Verdict]++
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(struct {
		Seed     uint64          `json:"seed"`
		Verdicts map[verdict]int `json:"verdicts"`
		Faults   []row           `json:"faults"`
		Looks    []row           `json:"lastLooks"`
	}{seed, verdicts, p.rows, p.looks})
}
