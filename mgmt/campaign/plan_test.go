package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
)

// TestPlan: a seed says all about a fault, and every kind comes up on every target and engine that it is for.
func TestPlan(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	seen := map[string]bool{}
	for range 20000 {
		for _, e := range []hv.Engine{hv.EngineKVM, hv.EngineProcess} {
			seed := newSeed(rnd, e, false)
			f := plan(seed, kinds)
			if g := plan(seed, kinds); !reflect.DeepEqual(f, g) {
				t.Fatalf("seed %d means %+v, and %+v", seed, f, g)
			}
			if f.engine != e || seed >= maxSeed {
				t.Fatalf("seed %d for engine %s means engine %s", seed, e, f.engine)
			}
			seen[fmt.Sprint(f.kind.name, f.target, e)] = true
			if f.second != nil {
				seen[fmt.Sprint("second ", f.second.kind.name, f.second.target, e)] = true
			}
		}
	}
	for range 2000 {
		if f := plan(newSeed(rnd, hv.EngineKVM, true), kinds); f.target != block || f.second != nil || !f.kind.forLinux() {
			t.Fatalf("%+v for a rig with a Linux VM", f)
		}
	}
	for _, k := range kinds {
		if k.way == killQEMU {
			continue
		}
		for _, target := range k.on {
			for _, e := range []hv.Engine{hv.EngineKVM, hv.EngineProcess} {
				want := len(k.engines) == 0
				for _, on := range k.engines {
					want = want || on == e
				}
				if seen[fmt.Sprint(k.name, target, e)] != want {
					t.Errorf("%s of %s on engine %s: %v, want %v", k.name, target, e, !want, want)
				}
			}
		}
	}
	for _, name := range seconds {
		if kindOf(name) == nil {
			t.Errorf("there is no kind %s", name)
		}
		if !seen["second "+name+block+string(hv.EngineKVM)] {
			t.Errorf("%s is never second", name)
		}
	}
	if _, err := choose("kill,nothing"); err == nil {
		t.Error("chose a kind that there is not")
	}
}

// TestDecide: the worst of what was found is the verdict, and a lie is LOST unless memory was flipped.
func TestDecide(t *testing.T) {
	flip, other := &kind{name: "flip:data", lies: true}, &kind{name: "kill"}
	for _, c := range []struct {
		kind, second      *kind
		wrong, told, lied string
		want              verdict
	}{
		{other, nil, "", "", "", recovered},
		{other, nil, "", "eio", "", degraded},
		{other, nil, "", "", "stale", failed},
		{flip, nil, "", "", "stale", silent},
		{flip, nil, "", "eio", "stale", silent},
		{flip, nil, "dead", "", "stale", failed},
		{flip, other, "", "", "stale", silent},
		{flip, other, "dead", "", "", failed},
	} {
		j := &judge{f: &fault{kind: c.kind}}
		if c.second != nil {
			j.f.second = &second{kind: c.second}
		}
		for list, s := range map[*[]string]string{&j.wrong: c.wrong, &j.told: c.told, &j.lied: c.lied} {
			if s != "" {
				j.note(list, "%s", s)
			}
		}
		if j.decide(); j.Verdict != c.want {
			t.Errorf("%+v: %s, want %s", c, j.Verdict, c.want)
		}
	}
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	p := newReport(&out)
	for i, v := range []verdict{recovered, recovered, degraded, silent, failed, refused} {
		p.add(row{ID: 6 - i, Kind: "kill", Target: block, Verdict: v, RecoverMs: float64(10 * i), Why: "because"})
	}
	p.look(row{Kind: "last look", Verdict: failed})
	if p.done() != 5 || p.lost() != 2 {
		t.Errorf("%d done, %d lost", p.done(), p.lost())
	}
	p.table(0)
	if !strings.Contains(out.String(), "kill") || !strings.Contains(out.String(), "1 are wrong") {
		t.Error(out.String())
	}
	out.Reset()
	if err := p.json(&out, 7); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Seed     uint64
		Verdicts map[verdict]int
		Faults   []row
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Seed != 7 || got.Verdicts[recovered] != 2 || len(got.Faults) != 6 || got.Faults[0].ID != 1 {
		t.Errorf("%v, %+v", err, got)
	}
}
