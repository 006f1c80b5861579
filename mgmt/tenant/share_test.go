package tenant

import (
	"slices"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		s    Share
		want string // part of the error; empty: none
	}{
		{"nothing", Share{}, ""},
		{"zero guarantee", cores(0), ""},
		{"negative guarantee", cores(-1), "negative"},
		{"negative cap", Share{CPU: CPU{Cap: -5}}, "negative"},
		{"cap too small", Share{CPU: CPU{Cap: 9}}, "cannot be kept"},
		{"guarantee above cap", Share{CPU: CPU{Guarantee: 600, Cap: 500}}, "more than the cap"},
		{"guarantee at cap", Share{CPU: CPU{Guarantee: 500, Cap: 500}}, ""},
		{"more than any host", cores(MaxMilli + 1), "given away"},
		{"negative weight", Share{CPU: CPU{Weight: -1}}, "weight of -1"},
		{"weight too large", Share{CPU: CPU{Weight: MaxWeight + 1}}, "weight"},
		{"processor that is not there", Share{CPU: CPU{Set: "0-2"}}, "processor 2"},
		{"bad set", Share{CPU: CPU{Set: "1-0"}}, "no set"},
		{"good set", Share{CPU: CPU{Set: "0,1"}}, ""},
		{"reserved above limit", Share{Memory: Memory{Reserved: 2, Limit: 1}}, "more than the limit"},
		{"negative memory", Share{Memory: Memory{Reserved: -2}}, "cannot be"},
		{"negative VMs", Share{VMs: -1}, "cannot be"},
		{"rate above cap", Share{Devices: map[string]Device{"b": {Ops: Rate{Guarantee: 2, Cap: 1}}}}, "more than the cap"},
		{"rate weight", Share{Devices: map[string]Device{"b": {Ops: Rate{Weight: -1}}}}, "weight"},
		{"driver name", Share{Devices: map[string]Device{"a/b": {}}}, "no driver"},
		{"real time", Share{CPU: CPU{RealTime: &RealTime{5000, 20000}}}, ""},
		{"real time of everything", Share{CPU: CPU{RealTime: &RealTime{20000, 20000}}}, ""},
		{"real time above 100 %", Share{CPU: CPU{RealTime: &RealTime{20001, 20000}}}, "cannot be"},
		{"real time of nothing", Share{CPU: CPU{RealTime: &RealTime{0, 20000}}}, "cannot be"},
		{"real time without a period", Share{CPU: CPU{RealTime: &RealTime{5000, 0}}}, "cannot be"},
		{"real time and set", Share{CPU: CPU{Set: "0", RealTime: &RealTime{5000, 20000}}}, "together"},
	} {
		err := c.s.Check(2)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestParseCores(t *testing.T) {
	for s, want := range map[string]Milli{"0": 0, "1": 1000, "0.5": 500, "1.2345": 1235, "0.001": 1} {
		if got, err := ParseCores(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "x", "-1", "NaN", "1e9", "Inf"} {
		if _, err := ParseCores(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if Milli(1).String() != "0.001 cores" || Milli(1000).String() != "1 core" {
		t.Error(Milli(1), Milli(1000))
	}
}

func FuzzParseSet(f *testing.F) {
	for _, s := range []string{"0", "0-3", "1,3-5,9", "3-1", ",", "0-", "4095", "4096", "0-4294967296"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		set, err := ParseSet(s)
		if err != nil {
			return
		}
		if len(set) == 0 || !slices.IsSorted(set) {
			t.Fatalf("%q: %v", s, set)
		}
		again, err := ParseSet(FormatSet(set))
		if err != nil || !slices.Equal(set, again) {
			t.Fatalf("%q: %v written as %q: %v, %v", s, set, FormatSet(set), again, err)
		}
	})
}
