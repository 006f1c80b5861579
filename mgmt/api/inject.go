package api

import (
	"context"
	"slices"
	"strings"

	"github.com/grailos/grail/hv"
)

// Inject is the body of POST drivers/{name}/inject and vms/{name}/inject: a fault to be made on purpose.
type Inject struct {
	Kind string `json:"kind"` // a FaultKind's Name
	// Seed decides all that is random. The same seed in the same situation makes the same fault.
	Seed uint64            `json:"seed"`
	Set  map[string]string `json:"set,omitempty"` // options of the kind; see FaultKind.Options
}

// Injected answers Inject, once the fault is made or armed.
type Injected struct {
	Kind   string `json:"kind"`
	Seed   uint64 `json:"seed"`
	Target string `json:"target"` // the driver or VM, and which instance of it
	What   string `json:"what"`   // precisely what was done
}

// FaultKind describes one kind of fault that can be injected.
type FaultKind struct {
	Name    string        `json:"name"`
	Summary string        `json:"summary"`
	Options []FaultOption `json:"options,omitempty"`
	// Silent says that the fault may corrupt results without anybody being told: it is made in memory or registers, where nothing checks.
	Silent bool `json:"silent,omitempty"`
	// Engines are those on which it works; empty: all.
	Engines []hv.Engine `json:"engines,omitempty"`
	// Drivers are the types of driver for which it works; empty: all.
	Drivers []string `json:"drivers,omitempty"`
	// VM: it works for native VMs, too.
	VM bool `json:"vm,omitempty"`
}

// FaultOption is one option of a FaultKind, for Inject.Set.
type FaultOption struct {
	Name    string `json:"name"`
	Default string `json:"default"` // in words
	Meaning string `json:"meaning"`
}

// LookupFault returns the kind of that name, or nil.
func LookupFault(name string) *FaultKind {
	if i := slices.IndexFunc(FaultKinds, func(k FaultKind) bool { return k.Name == name }); i >= 0 {
		return &FaultKinds[i]
	}
	return nil
}

// Check reports a mistake in the request that can be seen from the request alone.
func (r *Inject) Check() (*FaultKind, error) {
	k := LookupFault(r.Kind)
	if k == nil {
		return nil, Errorf(Invalid, "there is no fault %q; grailctl inject --list shows those that there are", r.Kind)
	}
	for name := range r.Set {
		if !slices.ContainsFunc(k.Options, func(o FaultOption) bool { return o.Name == name }) {
			have := "it has none"
			if len(k.Options) > 0 {
				var names []string
				for _, o := range k.Options {
					names = append(names, o.Name)
				}
				have = "it has " + strings.Join(names, ", ")
			}
			return nil, Errorf(Invalid, "fault %s has no option %q; %s", k.Name, name, have)
		}
	}
	return k, nil
}

// InjectDriver makes a fault in a driver VM.
func (c *Client) InjectDriver(ctx context.Context, name string, r Inject) (i Injected, err error) {
	return i, c.do(ctx, "POST", "drivers/"+seg(name)+"/inject", r, &i)
}

// InjectVM makes a fault in a native VM.
func (c *Client) InjectVM(ctx context.Context, name string, r Inject) (i Injected, err error) {
	return i, c.do(ctx, "POST", "vms/"+seg(name)+"/inject", r, &i)
}
