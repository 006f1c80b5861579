package daemon

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/tenant"
)

// user starts a VM that uses so many MiB of its 64, and waits until it says so.
func (r *rig) user(name, text, path string, s tenant.Share) {
	r.t.Helper()
	ticket, release, err := api.HandOver(r.dirs.Handover(), map[api.Role]*os.File{api.RoleProgram: r.program(text)})
	if err != nil {
		r.t.Fatal(err)
	}
	defer release()
	if _, err = r.client.CreateVM(ctx(r.t), api.CreateVM{Start: &api.StartVM{Ticket: ticket, Wait: true}, Config: api.VMConfig{
		Name: name, Personality: "native", Engine: hv.EngineProcess, MemoryBytes: 64 << 20, Program: "/use", Tenant: path, Share: s}}); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, name+" uses memory", func() bool { return r.used(name) > 0 })
}

// used returns what a VM says that it uses, in bytes.
func (r *rig) used(name string) uint64 {
	r.t.Helper()
	v, err := r.client.VM(ctx(r.t), name)
	if err != nil {
		r.t.Fatal(err)
	}
	if v.Status == nil {
		return 0
	}
	return v.Status.Stats.MemoryUsed
}

func reserve(bytes int64) tenant.Share { return tenant.Share{Memory: tenant.Memory{Reserved: bytes}} }

func TestReclaim(t *testing.T) {
	r := newRig(t)
	const mib = 1 << 20
	r.user("u", "use 50", "", reserve(20*mib))
	for name, c := range map[string]struct {
		req  api.ReclaimVM
		want api.Kind
		text string
	}{
		"nothing":            {api.ReclaimVM{}, api.Invalid, "say how much"},
		"two things":         {api.ReclaimVM{Take: mib, All: true}, api.Invalid, "say how much"},
		"before":             {api.ReclaimVM{Take: mib, WithinMs: -1}, api.Invalid, "between 0 and 10m0s"},
		"too late":           {api.ReclaimVM{Take: mib, WithinMs: hv.MaxReclaimMs + 1}, api.Invalid, "between"},
		"more than is used":  {api.ReclaimVM{Take: 60 * mib}, api.Refused, "it uses 50M, and 20M are reserved for it, which is never taken"},
		"what is reserved":   {api.ReclaimVM{Take: 30*mib + 1}, api.Refused, "20M are reserved"},
		"all":                {api.ReclaimVM{Take: ^uint64(0)}, api.Refused, "20M are reserved"},
		"less than reserved": {api.ReclaimVM{Keep: 20*mib - 1}, api.Refused, "20M are reserved"},
	} {
		if _, err := r.client.ReclaimVM(ctx(t), "u", c.req); api.KindOf(err) != c.want || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	out, err := r.client.ReclaimVM(ctx(t), "u", api.ReclaimVM{Take: 10 * mib, WithinMs: 1000})
	if err != nil || out.Given != 10*mib || out.After != 40*mib || out.Bound <= out.After || r.used("u") != 40*mib {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err = r.client.ReclaimVM(ctx(t), "u", api.ReclaimVM{All: true}); err != nil || out.Bound != 64*mib {
		t.Errorf("all again: %+v, %v", out, err)
	}
	// A limit below use takes the same path; one below what is reserved does not hold.
	if _, err := r.client.SetVM(ctx(t), "u", api.SetShare{Share: json.RawMessage(`{"memory":{"limit":33554432}}`)}); err != nil || r.used("u") > 32*mib {
		t.Errorf("a limit of 32M: %v, %d used", err, r.used("u"))
	}
	if v, err := r.client.SetVM(ctx(t), "u", api.SetShare{Share: json.RawMessage(`{"memory":{"limit":16777216}}`)}); api.KindOf(err) != api.Invalid {
		t.Errorf("a limit below what is reserved: %+v, %v", v, err)
	}
	v, err := r.client.SetVM(ctx(t), "u", api.SetShare{Share: json.RawMessage(`{"memory":{"limit":0}}`)})
	if err != nil || v.MemoryLimit != 0 || v.Status.Stats.Memory.Bound != 0 {
		t.Errorf("no limit: %+v, %v", v, err)
	}
	// Another reservation has the host's memory at once.
	v, err = r.client.SetVM(ctx(t), "u", api.SetShare{Share: json.RawMessage(`{"memory":{"reserved":8388608}}`)})
	if err != nil || v.Status.Stats.Memory.Prefaulted != 8*mib {
		t.Errorf("8M reserved: %+v, %v", v.Status, err)
	}

	r.user("h", "hoard 50", "", tenant.Share{})
	if out, err := r.client.ReclaimVM(ctx(t), "h", api.ReclaimVM{Keep: 16 * mib}); err != nil || !out.Ended || out.Cause != hv.CauseMemory || out.Message != "it did not give" {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := r.client.ReclaimVM(ctx(t), "h", api.ReclaimVM{Keep: 16 * mib}); api.KindOf(err) != api.Busy {
		t.Errorf("a VM that does not run: %v", err)
	}
}

// A reservation that the host has no memory for makes others give theirs, those of the tenant first, and never what is reserved for them.
func TestPromise(t *testing.T) {
	r := newRig(t)
	const mib = 1 << 20
	var free atomic.Int64 // beside what the VMs use
	var names []string
	r.d.memoryLeft = func() (uint64, bool) {
		left := free.Load()
		for _, n := range names {
			if v, err := r.d.VM(n); err == nil && v.Status != nil {
				left -= int64(v.Status.Stats.MemoryUsed)
			}
		}
		return uint64(max(left, 0)), true
	}
	r.tenant("a", tenant.Share{Memory: tenant.Memory{Reserved: 100 * mib}})
	for _, u := range []struct {
		name, text, path string
		s                tenant.Share
	}{{"near", "use 40", "a", tenant.Share{}}, {"far", "use 60", "", tenant.Share{}}, {"full", "use 50", "a", reserve(50 * mib)}} {
		r.user(u.name, u.text, u.path, u.s)
		names = append(names, u.name)
	}
	who := tenant.Key{Kind: tenant.VM, Name: "new"}
	free.Store(150*mib + besideReserved + 10*mib)
	p, err := r.d.promise(ctx(t), who, "a", 10*mib)
	if err != nil || r.used("near") != 40*mib || r.used("far") != 60*mib {
		t.Fatalf("there was room: %v, near uses %d, far %d", err, r.used("near"), r.used("far"))
	}
	// What is promised is not there any more, until it is kept.
	p2, err := r.d.promise(ctx(t), who, "a", 8*mib)
	if err != nil || r.used("near") >= 40*mib || r.used("full") != 50*mib {
		t.Errorf("the tenant's own VM was to give: %v, near uses %d, full %d", err, r.used("near"), r.used("full"))
	}
	r.d.room.keep(p, 0)
	r.d.room.keep(p2, 0)
	far := r.used("far")
	if p, err = r.d.promise(ctx(t), who, "a", 60*mib); err != nil || r.used("far") >= far || r.used("near") != 16*mib || r.used("full") != 50*mib {
		t.Errorf("%v, near uses %d, far %d of %d, full %d", err, r.used("near"), r.used("far"), far, r.used("full"))
	}
	r.d.room.keep(p, 0)
	left := r.used("far")
	_, err = r.d.promise(ctx(t), who, "a", 200*mib)
	if api.KindOf(err) != api.Refused || !strings.Contains(err.Error(), "VM new has 200M reserved, and the host has only") || !strings.Contains(err.Error(), "; other VMs use only") || r.used("far") != left {
		t.Errorf("more than all have to give: %v", err)
	}
	if r.used("full") != 50*mib || r.d.room.outstanding() != 0 {
		t.Errorf("full uses %d, %d are promised", r.used("full"), r.d.room.outstanding())
	}
	// They get it back when there is room.
	free.Store(1 << 40)
	r.d.repay()
	for _, n := range names {
		if v, err := r.d.VM(n); err != nil || v.Status.Stats.Memory.Bound != 0 {
			t.Errorf("%s: %+v, %v", n, v.Status, err)
		}
	}
}

func TestChoose(t *testing.T) {
	lenders := func() (list []lender) {
		for _, l := range []struct {
			name string
			near bool
			over uint64
		}{{"a", false, 100}, {"b", true, 20}, {"c", false, 300}, {"d", true, 50}, {"e", false, 100}} {
			v := &vm{}
			v.rec.Config.Name = l.name
			list = append(list, lender{v: v, near: l.near, over: l.over << 20})
		}
		return list
	}
	for _, c := range []struct {
		short uint64
		want  string
		last  uint64
	}{{1, "d", 1}, {50, "d", 50}, {60, "d b", 10}, {71, "d b c", 1}, {500, "d b c a e", 30}, {5000, "d b c a e", 100}} {
		asked := map[string]bool{}
		var got []string
		chosen := choose(lenders(), c.short<<20, asked)
		for _, l := range chosen {
			got = append(got, l.v.name())
		}
		if strings.Join(got, " ") != c.want || chosen[len(chosen)-1].take != c.last<<20 || len(asked) != len(got) || !slices.IsSortedFunc(chosen, func(a, b lender) int {
			switch {
			case a.near && !b.near:
				return -1
			case !a.near && b.near:
				return 1
			}
			return 0
		}) {
			t.Errorf("%d MiB short: %v, the last %d; expected %s", c.short, got, chosen[len(chosen)-1].take>>20, c.want)
		}
	}
}

// A VMM that the host's kernel ends for its memory says so in inspect, with the number; no other VM is concerned.
func TestOverrun(t *testing.T) {
	r := newRig(t)
	if err := r.d.domains.fence.Can(fence.Memory); err != nil {
		t.Skip("SKIPPED: memory is not fenced here:", err)
	}
	other := r.mustStart("other", "wait")
	rep := r.wait(r.mustStart("hog", "hog"))
	if rep.Cause != hv.CauseMemory || !strings.Contains(rep.Message, "used more than the 192M that they may, 64M for the guest and 128M for the VMM; the host's kernel ended them") {
		t.Errorf("%s: %s", rep.Cause, rep.Message)
	}
	if v, err := r.client.VM(ctx(t), other.Name); err != nil || v.State != api.Running {
		t.Errorf("%+v, %v", v, err)
	}
}
