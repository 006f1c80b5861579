package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// Result is one line of the table and one element of bench.json.
type Result struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"` // median of the runs
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer"`       // what it is compared with; empty: nothing
	PeerValue float64 `json:"peer_value"` // median of the peer's runs
	Ratio     float64 `json:"ratio"`      // above 1: better than the peer; 0 without a peer
	Runs      int     `json:"runs"`       // of each side
	Spread    float64 `json:"spread"`     // interquartile range of the runs by their median

	bar  bar
	note string // more about it, for the table's foot
}

// bar is what a Result should reach; the zero bar is always met.
type bar struct {
	ratio float64 // at least
	most  float64 // at most, in the Result's unit
	least float64 // at least, in the Result's unit
}

func (b bar) String() string {
	switch {
	case b.ratio > 0:
		return fmt.Sprintf("ratio ≥ %g", b.ratio)
	case b.most > 0:
		return fmt.Sprintf("≤ %g", b.most)
	case b.least > 0:
		return fmt.Sprintf("≥ %g", b.least)
	}
	return ""
}

func (b bar) met(r *Result) bool {
	return (b.ratio == 0 || r.Ratio >= b.ratio) && (b.most == 0 || r.Value <= b.most) && r.Value >= b.least
}

// better says which values are the better ones.
type better int

const (
	less better = iota
	more
)

// newResult sums up runs. theirs may be empty.
func newResult(name, unit string, b better, ours []float64, peer string, theirs []float64) Result {
	r := Result{Name: name, Unit: unit, Value: median(ours), Peer: peer, Runs: len(ours), Spread: spread(ours)}
	if len(theirs) == 0 {
		return r
	}
	r.PeerValue = median(theirs)
	if b == more {
		r.Ratio = r.Value / r.PeerValue
	} else {
		r.Ratio = r.PeerValue / r.Value
	}
	if math.IsNaN(r.Ratio) || math.IsInf(r.Ratio, 0) {
		r.Ratio = 0
	}
	return r
}

// quantile returns the value below which the fraction q of v lies, interpolated. v is not empty.
func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 == len(s) {
		return s[i]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// spread returns the interquartile range of v by its median.
func spread(v []float64) float64 {
	m := median(v)
	if m == 0 {
		return 0
	}
	return (quantile(v, 0.75) - quantile(v, 0.25)) / m
}

// writeTable prints results for a person.
func writeTable(w io.Writer, head string, rs []Result) {
	fmt.Fprintln(w, head)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "benchmark\tvalue\tunit\tpeer value\tratio\tbar\t\truns\tspread\tpeer")
	for i := range rs {
		r := &rs[i]
		peerValue, ratio, met := "", "", ""
		if r.Peer != "" {
			peerValue, ratio = number(r.PeerValue), fmt.Sprintf("%.2f", r.Ratio)
		}
		if r.bar != (bar{}) {
			met = "met"
			if !r.bar.met(r) {
				met = "MISSED"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.0f %%\t%s\n", r.Name, number(r.Value), r.Unit, peerValue, ratio, r.bar, met, r.Runs, 100*r.Spread, r.Peer)
	}
	t.Flush()
	for _, r := range rs {
		if r.note != "" {
			fmt.Fprintf(w, "\n%s: %s\n", r.Name, strings.ReplaceAll(r.note, "\n", "\n  "))
		}
	}
}

// number prints v with three significant digits, or all digits before the point.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// writeJSON replaces path by the results.
func writeJSON(path string, rs []Result) error {
	if rs == nil {
		rs = []Result{}
	}
	b, err := json.MarshalIndent(rs, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// values extracts one number of each element.
func values[T any, N cmp.Ordered](list []T, f func(T) N) []N {
	out := make([]N, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}
