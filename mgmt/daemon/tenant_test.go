package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/store"
	"github.com/grailos/grail/mgmt/tenant"
)

func cpuShare(m tenant.Milli) tenant.Share { return tenant.Share{CPU: tenant.CPU{Guarantee: m}} }

// tenant makes a tenant.
func (r *rig) tenant(path string, s tenant.Share) {
	r.t.Helper()
	if _, err := r.client.CreateTenant(ctx(r.t), api.CreateTenant{Path: path, Share: s}); err != nil {
		r.t.Fatal(err)
	}
}

// startIn makes and starts a VM with a share.
func (r *rig) startIn(name, path string, cpu float64, s tenant.Share) (api.VM, error) {
	r.t.Helper()
	return r.startProgramIn(name, "wait", path, cpu, s)
}

// startProgramIn is startIn for another fake program than one that waits.
func (r *rig) startProgramIn(name, program, path string, cpu float64, s tenant.Share) (api.VM, error) {
	r.t.Helper()
	ticket, release, err := api.HandOver(r.dirs.Handover(), map[api.Role]*os.File{api.RoleProgram: r.program(program)})
	if err != nil {
		r.t.Fatal(err)
	}
	defer release()
	return r.client.CreateVM(ctx(r.t), api.CreateVM{Start: &api.StartVM{Ticket: ticket, Wait: true}, Config: api.VMConfig{
		Name: name, Personality: "native", Engine: hv.EngineProcess, MemoryBytes: 64 << 20, Program: "/wait", Tenant: path, CPU: cpu, Share: s}})
}

func (r *rig) mustStartIn(name, path string, cpu float64, s tenant.Share) api.VM {
	r.t.Helper()
	v, err := r.startIn(name, path, cpu, s)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

// patch sends fields of a share to a tenant.
func (r *rig) patch(path, fields string) error {
	_, err := r.client.SetTenant(ctx(r.t), path, api.SetShare{Share: json.RawMessage(fields)})
	return err
}

func TestTenantsThatCannotBe(t *testing.T) {
	r := newRig(t)
	r.tenant("a", cpuShare(200))
	all := tenant.Milli(runtime.NumCPU() * 1000)
	for _, c := range []struct {
		name string
		path string
		s    tenant.Share
		want api.Kind
	}{
		{"negative", "n", cpuShare(-1), api.Invalid},
		{"more than the host has", "n", cpuShare(all + 1), api.Refused},
		{"what the host needs for itself", "n", cpuShare(all - 200), api.Refused},
		{"negative weight", "n", tenant.Share{CPU: tenant.CPU{Weight: -1}}, api.Invalid},
		{"more than the parent has", "a/n", cpuShare(201), api.Refused},
		{"guarantee of a device that offers none", "n", tenant.Share{Devices: map[string]tenant.Device{"blk0": {Ops: tenant.Rate{Guarantee: 1}}}}, api.Refused},
		{"real time", "n", tenant.Share{CPU: tenant.CPU{RealTime: &tenant.RealTime{RuntimeUs: 5000, PeriodUs: 20000}}}, api.Invalid},
		{"processor that is not there", "n", tenant.Share{CPU: tenant.CPU{Set: fmt.Sprint(runtime.NumCPU())}}, api.Invalid},
		{"no parent", "b/n", cpuShare(0), api.NotFound},
		{"bad name", "a//n", cpuShare(0), api.Invalid},
		{"twice", "a", cpuShare(0), api.Exists},
		{"the host", "/", cpuShare(0), api.Exists},
	} {
		if _, err := r.client.CreateTenant(ctx(t), api.CreateTenant{Path: c.path, Share: c.s}); err == nil || api.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
	if _, err := r.client.CreateTenant(ctx(t), api.CreateTenant{Path: "zero", Share: cpuShare(0)}); err != nil {
		t.Errorf("a guarantee of nothing: %v", err)
	}
	for fields, want := range map[string]api.Kind{`{"cpu":{"guarantee":-1}}`: api.Invalid, `{"cpu":{"guarantee":1000000}}`: api.Refused,
		`{"cpu":{"weight":10001}}`: api.Invalid, `{"cpu":7}`: api.Invalid, `{"cpu":{"cap":100}}`: api.Invalid} {
		if err := r.patch("a", fields); err == nil || api.KindOf(err) != want {
			t.Errorf("set %s: %v, want %s", fields, err, want)
		}
	}
	if err := r.client.RemoveTenant(ctx(t), "/"); api.KindOf(err) != api.Invalid {
		t.Errorf("remove the host: %v", err)
	}
	list, err := r.client.Tenant(ctx(t), "a")
	if err != nil || len(list) != 1 || list[0].Share.CPU.Guarantee != 200 {
		t.Errorf("after what was refused: %+v, %v", list, err)
	}
}

func TestTenantWithVMs(t *testing.T) {
	r := newRig(t)
	r.tenant("a", tenant.Share{CPU: tenant.CPU{Guarantee: 200}, VMs: 2})
	r.tenant("a/b", cpuShare(100))
	r.mustStartIn("v1", "a/b", 0, cpuShare(60))
	if _, err := r.startIn("v2", "a/b", 0, cpuShare(60)); api.KindOf(err) != api.Refused ||
		!strings.Contains(err.Error(), "tenant a/b has 0.04 cores free of 0.1 cores: held by VM v1 0.06 cores") {
		t.Errorf("over-committed: %v", err)
	}
	if _, err := r.client.VM(ctx(t), "v2"); api.KindOf(err) != api.NotFound {
		t.Errorf("a VM that was refused is left: %v", err)
	}
	r.mustStartIn("v2", "a", 0, tenant.Share{})
	if _, err := r.startIn("v3", "a/b", 0, tenant.Share{}); api.KindOf(err) != api.Refused {
		t.Errorf("a third VM of two: %v", err)
	}
	if err := r.patch("a", `{"vms":1}`); api.KindOf(err) != api.Refused {
		t.Errorf("a number of VMs below use: %v", err)
	}
	if err := r.client.RemoveTenant(ctx(t), "a/b"); api.KindOf(err) != api.Busy || !strings.Contains(err.Error(), "VM v1 (running)") {
		t.Errorf("removed with a VM that runs: %v", err)
	}
	if err := r.client.RemoveTenant(ctx(t), "a"); api.KindOf(err) != api.Busy {
		t.Errorf("removed with a sub-tenant: %v", err)
	}
	// Room comes back with the VM's end, and the tenant can go once nobody belongs to it.
	if err := r.client.RemoveVM(ctx(t), "v1", true); err != nil {
		t.Fatal(err)
	}
	if err := r.client.RemoveTenant(ctx(t), "a/b"); err != nil {
		t.Error(err)
	}
	r.mustStartIn("v3", "a", 0, cpuShare(200))
}

// A bound below what is used is refused with both numbers, and changes nothing; one above it is kept.
func TestMemoryLimitBelowUse(t *testing.T) {
	r := newRig(t)
	if err := r.d.domains.fence.Can(fence.Memory); err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	r.tenant("a", tenant.Share{Memory: tenant.Memory{Limit: 1 << 30}})
	v, err := r.startProgramIn("h", "gorge 48", "a", 0, tenant.Share{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.SignalVM(ctx(t), "h", int(unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it uses its memory", func() bool {
		n, err := r.d.domains.fence.MemoryUsed("t.a")
		return err == nil && n > 48<<20
	})
	err = r.patch("a", `{"memory":{"limit":33554432}}`)
	if api.KindOf(err) != api.Refused || !strings.Contains(err.Error(), "cannot be limited to 32M of memory: its VMs use ") {
		t.Errorf("below what is used: %v", err)
	}
	if list, err := r.client.Tenant(ctx(t), "a"); err != nil || list[0].Share.Memory.Limit != 1<<30 {
		t.Errorf("after that: %+v, %v", list, err)
	}
	if err := r.patch("a", `{"memory":{"limit":134217728}}`); err != nil {
		t.Errorf("above what is used: %v", err)
	}
	r.agree("limited")
	if err := r.client.SignalVM(ctx(t), "h", int(unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if rep := r.wait(v); rep.Cause != hv.CauseSignal {
		t.Errorf("%+v", rep)
	}
}

// limit returns the CPU cap that the kernel has for the group of a process: quota and period in µs.
func limit(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.Contains(f[2], "/grail-") {
			continue
		}
		switch f[1] {
		case "cpu", "cpu,cpuacct":
			dir := filepath.Join("/sys/fs/cgroup/cpu", f[2])
			quota, _ := os.ReadFile(filepath.Join(dir, "cpu.cfs_quota_us"))
			period, _ := os.ReadFile(filepath.Join(dir, "cpu.cfs_period_us"))
			return strings.TrimSpace(string(quota)) + " " + strings.TrimSpace(string(period))
		case "":
			b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", f[2], "cpu.max"))
			return strings.TrimSpace(string(b))
		}
	}
	return ""
}

func needCgroups(t *testing.T, r *rig) {
	t.Helper()
	if err := r.d.domains.fence.Can(fence.CPU); err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
}

func TestSharesTakeEffectAtOnce(t *testing.T) {
	r := newRig(t)
	needCgroups(t, r)
	r.tenant("a", tenant.Share{})
	v := r.mustStartIn("v", "a", 0.5, tenant.Share{})
	if got := limit(t, v.PID); got != "10000 20000" {
		t.Errorf("cap of half a core: %q", got)
	}
	if _, err := r.client.SetVM(ctx(t), "v", api.SetShare{Share: json.RawMessage(`{"cpu":{"cap":250}}`)}); err != nil {
		t.Fatal(err)
	}
	if got := limit(t, v.PID); got != "5000 20000" {
		t.Errorf("cap of a quarter: %q", got)
	}
	// The tenant's cap bounds its VM's, whichever is lower.
	if err := r.patch("a", `{"cpu":{"cap":100}}`); err != nil {
		t.Fatal(err)
	}
	if got := limit(t, v.PID); got != "2000 20000" {
		t.Errorf("cap of the tenant: %q", got)
	}
	if err := r.patch("a", `{"cpu":{"cap":0}}`); err != nil {
		t.Fatal(err)
	}
	if got := limit(t, v.PID); got != "5000 20000" {
		t.Errorf("no cap of the tenant: %q", got)
	}
	got, err := r.client.VM(ctx(t), "v")
	if err != nil || got.CPU != 0.25 || len(got.Notes) > 0 {
		t.Errorf("the VM says: %+v, %v", got.VMConfig, err)
	}
}

// graild was killed after it had written a change and before the kernel had it; somebody moved the VM's process; a group is left of a VM that is
// gone. The next graild makes the kernel what the store says.
func TestTreeAndKernelAgreeAfterARestart(t *testing.T) {
	r := newRig(t)
	needCgroups(t, r)
	r.tenant("a", cpuShare(200))
	v := r.mustStartIn("v", "a", 0.5, cpuShare(100))
	f := r.d.domains.fence
	if err := f.Apply("v.gone", fence.Limits{CapMilli: 100}); err != nil {
		t.Fatal(err)
	}
	if err := f.Apply("stray", fence.Limits{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Add("stray", v.PID); err != nil {
		t.Fatal(err)
	}
	r.close()
	s, err := store.Open(r.dirs.Store(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range []*store.Tenant{
		{Path: "a", Share: tenant.Share{CPU: tenant.CPU{Guarantee: 200, Cap: 300}}},
		{Path: "b", Share: cpuShare(tenant.MaxMilli)}, // from a time when the host was larger
		{Path: "b/c", Share: cpuShare(5)},
	} {
		if err := s.PutTenant(rec); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	if got := limit(t, v.PID); got != "6000 20000" {
		t.Errorf("the VM's cap is %q, want its tenant's", got)
	}
	for _, g := range r.d.domains.fence.Groups() {
		if g == "stray" || g == "v.gone" {
			t.Errorf("group %s is left", g)
		}
	}
	list, err := r.client.Tenants(ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]api.Domain{}
	for _, n := range list {
		found[n.Name] = n
	}
	if n := found["a"]; n.Share.CPU.Guarantee != 200 || n.Held["cpu"] != 100 {
		t.Errorf("tenant a: %+v", n)
	}
	if n := found["b"]; n.Share.CPU.Guarantee != 0 || len(n.Notes) != 1 {
		t.Errorf("what cannot be kept any more: %+v", n)
	}
	if n := found["b/c"]; n.Share.CPU.Guarantee != 0 || len(n.Notes) != 1 {
		t.Errorf("and what is below it: %+v", n)
	}
	// The VM's end is seen, and its groups go.
	if err := r.client.RemoveVM(ctx(t), "v", true); err != nil {
		t.Fatal(err)
	}
	for _, g := range r.d.domains.fence.Groups() {
		if strings.Contains(g, "v.v") {
			t.Errorf("group %s is left", g)
		}
	}
}

func TestWithoutCgroups(t *testing.T) {
	t.Setenv("GRAIL_CGROUPS", "off")
	r := newRig(t)
	r.tenant("a", cpuShare(300))
	v := r.mustStartIn("v", "a", 0.5, cpuShare(200))
	v, err := r.client.VM(ctx(t), v.Name)
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(v.Notes, "\n")
	for _, want := range []string{"its part of the processors is not enforced", "the CPU cap of 0.5 cores", "no memory fence"} {
		if !strings.Contains(notes, want) {
			t.Errorf("%q is missing in the notes:\n%s", want, notes)
		}
	}
	if _, err := r.startIn("w", "a", 0, cpuShare(200)); api.KindOf(err) != api.Refused {
		t.Errorf("admission needs no cgroups: %v", err)
	}
}

func TestDriversReservation(t *testing.T) {
	r := newRig(t)
	r.mustDriver("blk0")
	held := func() int64 {
		list, err := r.client.Tenants(ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		return list[0].Held["memory"]
	}
	with := held()
	if _, err := r.client.SetDriver(ctx(t), "blk0", api.SetDriver{Spares: new(0)}); err != nil {
		t.Fatal(err)
	}
	without := held()
	if with-without != 64<<20 {
		t.Errorf("a spare less gives %d bytes back", with-without)
	}
	if err := r.client.RemoveDriver(ctx(t), "blk0", true); err != nil {
		t.Fatal(err)
	}
	if after := held(); without-after != 64<<20 {
		t.Errorf("the driver's end gives %d bytes back", without-after)
	}
}

func TestThousandTenants(t *testing.T) {
	r := newRig(t)
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			if _, err := r.d.CreateTenant(api.CreateTenant{Path: fmt.Sprintf("t%d", i), Share: cpuShare(1)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	r.mustStartIn("v", "t999", 0, cpuShare(1))
	r.close()
	r.open()
	list, err := r.client.Tenants(ctx(t))
	if err != nil || len(list) < 1002 || list[0].Held["cpu"] < 1000 {
		t.Errorf("%d nodes, %v", len(list), err)
	}
}
