package daemon

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/mgmt/api"
)

// Every kind that is offered has an order within bounds, or is made by graild or the driver's program, with each seed.
func TestEveryFaultIsMade(t *testing.T) {
	byGraild := map[string]bool{"kill": true, "vmm:kill": true, "ring:driver": true, "ring:client": true, "bell:storm": true}
	for _, k := range api.FaultKinds {
		for seed := range uint64(50) {
			o, err := orderOf(&api.Inject{Kind: k.Name, Seed: seed})
			if err != nil {
				t.Fatalf("%s, seed %d: %v", k.Name, seed, err)
			}
			_, told := told[k.Name]
			if made := o != nil; made == (byGraild[k.Name] || told) {
				t.Errorf("%s: order %+v", k.Name, o)
			}
			if o != nil && o.Seed != seed {
				t.Errorf("%s: seed %d", k.Name, o.Seed)
			}
		}
	}
	for _, lie := range foundOut {
		found := false
		for _, have := range program.Lies() {
			found = found || have == lie
		}
		if !found {
			t.Errorf("no driver knows the lie %s", lie)
		}
	}
}

func TestFaultOptions(t *testing.T) {
	for _, c := range []struct {
		kind, option, value string
		ok                  bool
	}{
		{"flip:code", "bits", "64", true}, {"flip:code", "bits", "65", false}, {"flip:code", "bits", "0", false}, {"flip:code", "bits", "-1", false},
		{"syscall:fail", "n", "4294967296", true}, {"syscall:fail", "n", "4294967297", false}, {"syscall:fail", "n", "", false},
		{"syscall:fail", "p", "0.5", true}, {"syscall:fail", "p", "0", false}, {"syscall:fail", "p", "1.1", false}, {"syscall:fail", "p", "NaN", false},
		{"syscall:fail", "errno", "ENOMEM", true}, {"syscall:fail", "errno", "enomem", true}, {"syscall:fail", "errno", "12", false},
		{"syscall:fail", "call", "0", true}, {"syscall:fail", "call", "read", false},
		{"syscall:delay", "ms", "0", false}, {"syscall:delay", "ms", "3600001", false},
		{"io:error", "op", "flush", true}, {"io:error", "op", "kick", false}, {"io:error", "transient", "yes", false},
		{"bell:lost", "side", "call", true}, {"bell:lost", "side", "left", false},
		{"memory", "from", "vmm", true}, {"memory", "from", "host", false}, {"memory", "leave", "x", true},
		{"clock", "by", "-2h", true}, {"clock", "by", "0s", false}, {"clock", "by", "9999999h", false}, {"clock", "by", "-2562047h47m16.854775808s", false}, {"clock", "of", "monotonic", false},
	} {
		req := api.Inject{Kind: c.kind, Set: map[string]string{c.option: c.value}}
		if _, err := req.Check(); err != nil {
			t.Errorf("%s %s: %v", c.kind, c.option, err)
		}
		if _, err := orderOf(&req); (err == nil) != c.ok {
			t.Errorf("%s %s=%s: %v", c.kind, c.option, c.value, err)
		}
	}
	for _, bad := range []api.Inject{{Kind: ""}, {Kind: "nonsense"}, {Kind: "kill", Set: map[string]string{"n": "1"}}, {Kind: "io:short", Set: map[string]string{"errno": "EIO"}}} {
		if _, err := bad.Check(); api.KindOf(err) != api.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	o, err := orderOf(&api.Inject{Kind: "io:error", Set: map[string]string{"transient": "1"}, Seed: 1})
	if err != nil || o.Errno != int(unix.EAGAIN) || o.Fault != inject.IO || o.Times != 1 {
		t.Errorf("%+v, %v", o, err)
	}
}
