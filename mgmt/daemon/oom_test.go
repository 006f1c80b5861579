package daemon

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/tenant"
)

// A VMM that the kernel kills for want of memory is told from one that somebody killed: by the graild that saw it, and by one that came later. Whose bound it
// was is said with its number.
func TestKilledForMemory(t *testing.T) {
	r := newRig(t)
	if err := r.d.domains.fence.Can(fence.Memory); err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	v := r.mustStart("h", "gorge")
	if err := r.client.SignalVM(ctx(t), "h", int(unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if rep := r.wait(v); rep.Cause != hv.CauseMemory || !strings.Contains(rep.Message, "192M") {
		t.Errorf("%+v", rep)
	}

	v = r.mustStart("h2", "gorge")
	inst := r.d.vms["h2"].inst
	r.close()
	if _, _, err := inst.call(hv.Request{Op: hv.OpSignal, Signal: int(unix.SIGUSR1)}, callTimeout); err != nil {
		t.Fatal(err)
	}
	<-inst.ended
	r.open()
	if rep := r.wait(v); rep.Cause != hv.CauseMemory {
		t.Errorf("killed while there was no graild: %+v", rep)
	}

	// Its next run is another one.
	v = r.mustStart("h3", "ignore")
	if err := unix.Kill(v.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if rep := r.wait(v); rep.Cause != hv.CauseKilled {
		t.Errorf("killed by somebody: %+v", rep)
	}
}

func TestBlameTheTenant(t *testing.T) {
	r := newRig(t)
	if err := r.d.domains.fence.Can(fence.Memory); err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	r.tenant("a", tenant.Share{})
	r.tenant("a/b", tenant.Share{Memory: tenant.Memory{Limit: 32 << 20}}) // and what the VMM may have
	v, err := r.startProgramIn("h", "gorge", "a/b", 0, tenant.Share{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.client.SignalVM(ctx(t), "h", int(unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if rep := r.wait(v); rep.Cause != hv.CauseMemory || !strings.Contains(rep.Message, "all that runs for tenant a/b may use 160M") {
		t.Errorf("%+v", rep)
	}
}

// A VMM that translates has room for the translated code beside what any VMM has.
func TestMemoryOfVMM(t *testing.T) {
	for p, want := range map[string]int64{api.Native: 128 << 20, api.Linux: 256 << 20} {
		if got := shareOf(&api.VMConfig{Personality: p, MemoryBytes: 64 << 20}).Memory; got.VMM != want || got.Limit != 64<<20 {
			t.Errorf("%s: %+v", p, got)
		}
	}
}
