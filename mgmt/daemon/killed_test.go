package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/tenant"
)

// victimEnv makes the test binary a graild that kills itself: its value is where, as in victimAt, and the directories.
const victimEnv = "GRAIL_TEST_VICTIM"

// victimAt says at which change of a cgroup a victim dies.
type victimAt struct {
	Changes int  // that are made before
	Adopted bool // counted once it has adopted what its predecessor left, and not from its start
	Dirs    place.Dirs
}

func (at victimAt) String() string {
	when := "from its start"
	if at.Adopted {
		when = "from its first request"
	}
	return fmt.Sprintf("killed after %d changes %s", at.Changes, when)
}

// victim is the graild that dies.
func victim() {
	var at victimAt
	if err := json.Unmarshal([]byte(os.Getenv(victimEnv)), &at); err != nil {
		panic(err)
	}
	step := func() {
		if at.Changes--; at.Changes < 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	if !at.Adopted {
		openFence = func(name string) *fence.Tree {
			t := fence.Open(name)
			t.Step = step
			return t
		}
	}
	d, err := Open(at.Dirs, slog.New(slog.DiscardHandler), "test")
	if err != nil {
		panic(err)
	}
	if at.Adopted {
		d.domains.fence.Step = step
	}
	l, err := d.Listen()
	if err != nil {
		panic(err)
	}
	fmt.Println("serving")
	_ = http.Serve(l, d.Handler(func() {}))
}

// tryKilled has a graild die at a change of a cgroup while it adopts or does something, and returns whether it did both and lived.
func (r *rig) tryKilled(at victimAt, do func() error) (survived bool) {
	r.t.Helper()
	r.close()
	at.Dirs = r.dirs
	text, err := json.Marshal(at)
	if err != nil {
		r.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), victimEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	line, err := io.ReadAll(io.LimitReader(out, int64(len("serving\n"))))
	if err == nil && string(line) == "serving\n" {
		if err = do(); err != nil && !api.Down(err) {
			r.t.Errorf("%v: %v", at, err)
		}
		survived = !api.Down(err)
	}
	_ = cmd.Process.Kill()
	err = cmd.Wait()
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != unix.SIGKILL {
		r.t.Fatalf("%v: the victim ended by itself: %v", at, err)
	}
	r.open()
	r.agree(at.String())
	return survived
}

// agree compares the kernel's groups with those that a tree makes anew from the same plan, and the tree with the store.
func (r *rig) agree(when string) {
	r.t.Helper()
	dm := r.d.domains
	dm.mu.Lock()
	defer dm.mu.Unlock()
	plan, groups := dm.plan()
	want := map[string]bool{}
	for _, g := range groups {
		want[g] = true
	}
	for _, g := range dm.fence.Groups() {
		if !want[g] {
			r.t.Errorf("%s: group %s is left", when, g)
		}
		delete(want, g)
	}
	for g := range want {
		r.t.Errorf("%s: there is no group %s", when, g)
	}
	ref := fence.Open(fmt.Sprintf("grail-reference-%d", os.Getpid()))
	defer ref.Sweep(func(string) bool { return false })
	if err := ref.ApplyAll(plan); err != nil {
		r.t.Fatal(err)
	}
	for _, g := range plan {
		for c, files := range map[fence.Controller][]string{
			fence.CPU:    {"cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.weight", "cpu.max"},
			fence.Memory: {"memory.limit_in_bytes", "memory.max", "memory.min"}, fence.Threads: {"pids.max"}, fence.Set: {"cpuset.cpus"},
		} {
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(ref.Dir(c, g.Path), f))
				if err != nil {
					continue // the other version's, or a group that is not bounded in that
				}
				got, err := os.ReadFile(filepath.Join(dm.fence.Dir(c, g.Path), f))
				if err != nil || bound(got) != bound(b) {
					r.t.Errorf("%s: group %q: %s is %q, want %q, %v", when, g.Path, f, got, b, err)
				}
			}
		}
	}
	for _, v := range r.d.vms {
		if v.inst == nil {
			continue
		}
		if g, ok := dm.fence.Of(v.inst.proc.PID); !ok || g != groups[v.key()] {
			r.t.Errorf("%s: VM %s is in group %q, want %q", when, v.name(), g, groups[v.key()])
		}
	}
	recs, err := r.d.store.Tenants()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, rec := range recs {
		if s, ok := dm.tree.Share(tenant.Of(rec.Path)); rec.Path != tenant.Root && (!ok || !reflect.DeepEqual(s, rec.Share)) {
			r.t.Errorf("%s: tenant %s has %+v, %v in the tree and %+v in the store", when, rec.Path, s, ok, rec.Share)
		}
	}
}

// bound makes what stands for no bound the same everywhere.
func bound(b []byte) string {
	s := strings.TrimSpace(string(b))
	if n, err := strconv.ParseUint(s, 10, 64); err == nil && n >= 1<<60 {
		return "max"
	}
	return s
}

// graild dies by SIGKILL at each change of a cgroup that it makes, while it adopts and while it carries out what it was asked for: the next one makes the tree
// and the kernel agree, and what was asked for is done, or is not.
func TestKilledInTheMiddleOfAChange(t *testing.T) {
	r := newRig(t)
	needCgroups(t, r)
	r.tenant("a", tenant.Share{CPU: tenant.CPU{Guarantee: 300}, Memory: tenant.Memory{Reserved: 256 << 20}})
	r.tenant("a/b", tenant.Share{CPU: tenant.CPU{Guarantee: 200}, Memory: tenant.Memory{Reserved: 64 << 20}})
	v := r.mustStartIn("v", "a/b", 0.5, cpuShare(50))
	var next int
	var pinned bool
	name := func(s string) string { return fmt.Sprint(s, next) }
	ctx := ctx(t)
	known := func(err error) error { // of what a predecessor had done before it died
		if k := api.KindOf(err); k == api.Exists || k == api.NotFound {
			return nil
		}
		return err
	}
	rounds := 0
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"tenant create", func() error {
			_, err := r.client.CreateTenant(ctx, api.CreateTenant{Path: "a/" + name("t"), Share: tenant.Share{CPU: tenant.CPU{Guarantee: 10, Cap: 100}}})
			return err
		}},
		{"tenant set", func() error {
			return r.patch("a", fmt.Sprintf(`{"cpu":{"cap":%d},"memory":{"limit":%d}}`, 400+10*next, (300+next)<<20))
		}},
		{"tenant set cpuset", func() error {
			pinned = !pinned
			return r.patch("a", fmt.Sprintf(`{"cpu":{"set":%q}}`, map[bool]string{true: "0"}[pinned]))
		}},
		{"VM set", func() error {
			_, err := r.client.SetVM(ctx, "v", api.SetShare{Share: json.RawMessage(fmt.Sprintf(`{"cpu":{"cap":%d,"guarantee":%d}}`, 300-next, 50+next%2))})
			return err
		}},
		{"VM create", func() error {
			_, err := r.startIn(name("w"), "a/b", 0.3, tenant.Share{CPU: tenant.CPU{Guarantee: 10}, Memory: tenant.Memory{Reserved: 16 << 20}})
			return err
		}},
		{"VM rm", func() error { return known(r.client.RemoveVM(ctx, "x", true)) }},
		{"driver create", func() error {
			_, err := r.client.CreateDriver(ctx, api.CreateDriver{Config: api.DriverConfig{Name: name("d"), Type: "blk", Tenant: "a", Engine: hv.EngineProcess,
				MemoryBytes: 64 << 20, Spares: new(0), Disks: []api.Disk{{ID: "d", Path: diskFile(t)}}}})
			return err
		}},
		{"tenant rm", func() error { return known(r.client.RemoveTenant(ctx, "a/gone")) }},
	} {
		t.Run(c.what, func(t *testing.T) {
			r.t = t
			n := 0
			for done := false; !done; n++ {
				next++
				if c.what == "VM rm" {
					r.mustStartIn("x", "a/b", 0, cpuShare(10))
				}
				if c.what == "tenant rm" {
					r.tenant("a/gone", cpuShare(10))
					r.mustStartIn("g", "a/gone", 0, tenant.Share{})
					if err := r.client.RemoveVM(ctx, "g", true); err != nil {
						t.Fatal(err)
					}
				}
				done = r.tryKilled(victimAt{Changes: n, Adopted: true}, c.do)
				rounds++
				r.tidy()
				if n > 100 {
					t.Fatal("there is no end to the changes")
				}
			}
			t.Logf("killed at each of %d changes", n-1)
		})
	}
	r.t = t
	for n, done := 0, false; !done; n++ {
		// So that there is something to settle.
		if err := r.d.domains.fence.Apply("stray", fence.Limits{CapMilli: 100}); err != nil {
			t.Fatal(err)
		}
		if err := r.d.domains.fence.Add("stray", v.PID); err != nil {
			t.Fatal(err)
		}
		done = r.tryKilled(victimAt{Changes: n}, func() error { return nil })
		rounds++
	}
	t.Logf("killed %d times", rounds)
	if got, err := r.client.VM(ctx, "v"); err != nil || got.State != api.Running || got.PID != v.PID {
		t.Errorf("the VM that ran all the time: %+v, %v", got, err)
	}
}

// tidy removes what a round has made, all but VM v and its tenants.
func (r *rig) tidy() {
	r.t.Helper()
	var errs []error
	for _, v := range r.d.VMs() {
		if v.Name != "v" {
			errs = append(errs, r.client.RemoveVM(ctx(r.t), v.Name, true))
		}
	}
	for _, d := range r.d.Drivers() {
		if d.Name != "con0" {
			errs = append(errs, r.client.RemoveDriver(ctx(r.t), d.Name, true))
		}
	}
	list, err := r.client.Tenants(ctx(r.t))
	errs = append(errs, err)
	for _, n := range list {
		if n.Kind == tenant.Tenant && n.Name != "a" && n.Name != "a/b" {
			errs = append(errs, r.client.RemoveTenant(ctx(r.t), n.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}
