package main

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// way is how a fault is brought about.
type way int

// The ways.
const (
	crash        way = iota // graild is asked to crash the driver
	inject                  // graild is asked to inject it into the driver
	injectClient            // into a client of the driver
	killVMM                 // the process of the driver VM is killed behind graild's back
	killSpare               // the process of its spare
	killClient              // the process of one of its clients
	killGraild              // graild, which is started again a little later
	upgrade                 // none: the driver's program is replaced
	killQEMU                // the QEMU of a Linux VM that is a client
	outage                  // every instance of the driver is killed as it comes, until its policy applies
)

// kind is a kind of fault.
type kind struct {
	name    string
	way     way
	weight  int // how often it is chosen, against the others
	on      []string
	engines []hv.Engine // on which it works; none: all

	dies   bool          // the driver dies of it, by itself or because it is found out
	killed bool          // its process may end without a last word
	taints bool          // a driver that survives it is not what it was, and is replaced before the next fault
	fails  bool          // clients may be told errors: it is in what the host's device says
	lies   bool          // it may end SILENT: the driver's own memory is not what it was
	look   time.Duration // how long the driver is looked at if it is not to die
}

// Drivers of a rig that are harmed.
const (
	block   = "blk0"
	network = "net0"
	console = "con0"
)

var all = []string{block, network, console}

// How long a driver is looked at that may survive a fault.
const (
	shortLook = 80 * time.Millisecond
	longLook  = 250 * time.Millisecond
)

// ownKinds are the faults that are brought about from outside of the drivers.
var ownKinds = []kind{
	{name: "fault", way: crash, weight: 6, on: all, dies: true},
	{name: "hang", way: crash, weight: 3, on: all, dies: true, killed: true},
	{name: "vmm:kill", way: killVMM, weight: 12, on: all, dies: true, killed: true},
	{name: "spare:kill", way: killSpare, weight: 5, on: all, killed: true, look: shortLook},
	{name: "client:kill", way: killClient, weight: 4, on: []string{block, network}, killed: true, look: shortLook},
	{name: "graild:kill", way: killGraild, weight: 5, on: all, look: shortLook},
	{name: "upgrade", way: upgrade, weight: 3, on: all, look: shortLook},
	{name: "qemu:kill", way: killQEMU, weight: 1, on: []string{block}, killed: true, look: shortLook},
	{name: "outage", way: outage, weight: 1, on: []string{block, network}, dies: true, killed: true, fails: true},
}

// injected says what is to be expected of the faults that graild injects, by the beginnings of their names; the first that fits counts.
var injected = []kind{
	{name: "vmm:kill"}, // of our own: it comes as a surprise to graild
	{name: "kill", weight: 12, dies: true, killed: true},
	{name: "exception:", weight: 2, taints: true, look: longLook},
	{name: "flip:", weight: 8, taints: true, lies: true, killed: true, look: longLook},
	{name: "syscall:fail", weight: 4, taints: true, fails: true, killed: true, look: longLook},
	{name: "syscall:delay", weight: 4, taints: true, killed: true, look: longLook},
	{name: "io:", weight: 4, taints: true, fails: true, killed: true, look: longLook},
	{name: "ring:client", way: injectClient, weight: 3, killed: true, look: longLook},
	{name: "ring:", weight: 5, taints: true, killed: true, look: longLook},
	{name: "bell:", weight: 3, taints: true, killed: true, look: longLook},
	{name: "hang:", weight: 4, dies: true, killed: true},
	{name: "stall", weight: 1, dies: true, killed: true},
	{name: "memory", weight: 3, taints: true, killed: true, look: longLook},
	{name: "", weight: 3, taints: true, killed: true, look: longLook},
}

// kinds are all kinds of fault. A fault's seed chooses among them, so that their order and weights are part of what a seed means.
var kinds = append(slices.Clone(ownKinds), injectedKinds()...)

func injectedKinds() (list []kind) {
	for _, g := range api.FaultKinds {
		i := slices.IndexFunc(injected, func(k kind) bool { return strings.HasPrefix(g.Name, k.name) })
		k := injected[i]
		if k.weight == 0 {
			continue
		}
		if k.way == crash {
			k.way = inject
		}
		k.name, k.engines, k.on = g.Name, g.Engines, nil
		for _, name := range all {
			if len(g.Drivers) == 0 || slices.Contains(g.Drivers, typeOf[name]) {
				k.on = append(k.on, name)
			}
		}
		if k.way == injectClient {
			k.on = []string{block, network}
		}
		if k.lies && !g.Silent {
			panic("only what graild says may corrupt in silence may do so here: " + g.Name)
		}
		list = append(list, k)
	}
	return list
}

// typeOf are the types of the rig's drivers.
var typeOf = map[string]string{block: "blk", network: "net", console: "console"}

// forLinux reports whether a rig with a Linux VM has that kind: its one client cannot be killed without booting another one, nor go on after an error.
func (k *kind) forLinux() bool {
	return slices.Contains(k.on, block) && !k.fails && k.way != killClient && k.way != injectClient && k.way != outage
}

// seconds are the kinds that may follow another one during its recovery.
var seconds = []string{"kill", "vmm:kill", "spare:kill", "client:kill", "graild:kill"}

// How often a second fault comes, and when.
const (
	secondShare = 5 // one in so many; more often where the first one does nothing by itself
	maxGap      = 150 * time.Millisecond
	maxLead     = 15 * time.Millisecond
	maxFlips    = 7 // up to 64 bits
)

// fault is one fault, all of which follows from its seed and the list of kinds.
type fault struct {
	seed   uint64
	engine hv.Engine
	kind   *kind
	target string
	lead   time.Duration // how long clients are at work before it
	arg    uint64        // seed for inject
	set    map[string]string
	pause  time.Duration // how long there is no graild, if it is killed
	second *second
}

// second is a fault during the recovery from another one.
type second struct {
	kind   *kind
	target string
	gap    time.Duration // after the first one
}

// maxSeed bounds the seeds of faults: a JSON number has 53 bits for everybody.
const maxSeed = 1 << 48

// Bits of a seed that say what kind of rig it is for.
const (
	onProcess = 1 << iota // its engine is process, and not kvm
	onLinux               // its client is a Linux VM
)

// newSeed returns the seed of a fault on rigs with that engine, and with a Linux VM for a client or without.
func newSeed(rnd *rand.Rand, e hv.Engine, linux bool) uint64 {
	seed := rnd.Uint64N(maxSeed) &^ (onProcess | onLinux)
	if e == hv.EngineProcess {
		seed |= onProcess
	}
	if linux {
		seed |= onLinux
	}
	return seed
}

// plan returns the fault of a seed, of one of the given kinds.
func plan(seed uint64, among []kind) fault {
	rnd := rand.New(rand.NewPCG(seed, 0))
	f := fault{seed: seed, engine: hv.EngineKVM}
	if seed&onProcess != 0 {
		f.engine = hv.EngineProcess
	}
	linux := seed&onLinux != 0
	among = slices.DeleteFunc(slices.Clone(among), func(k kind) bool {
		return len(k.engines) > 0 && !slices.Contains(k.engines, f.engine) || linux && !k.forLinux() || !linux && k.way == killQEMU
	})
	if len(among) == 0 {
		return f
	}
	sum := 0
	for _, k := range among {
		sum += k.weight
	}
	n := rnd.IntN(sum)
	for i := range among {
		if n -= among[i].weight; n < 0 {
			f.kind = &among[i]
			break
		}
	}
	f.target = f.kind.on[rnd.IntN(len(f.kind.on))]
	if linux {
		f.target = block
	}
	f.lead = time.Duration(rnd.Int64N(int64(maxLead)))
	f.pause = time.Duration(rnd.Int64N(int64(maxGap)))
	f.arg = rnd.Uint64N(maxSeed)
	if f.kind.lies {
		f.set = map[string]string{"bits": strconv.Itoa(1 << rnd.IntN(maxFlips))} // one does nothing, most often
	}
	share := secondShare
	if !f.kind.dies && f.kind.way != inject && f.kind.way != injectClient {
		share = 2
	}
	if rnd.IntN(share) == 0 && !linux {
		s := &second{kind: kindOf(seconds[rnd.IntN(len(seconds))]), target: f.target}
		if rnd.IntN(3) == 0 { // another driver, at the same time
			s.target = all[rnd.IntN(len(all))]
		}
		if s.kind.way == killClient && s.target == console {
			s.target = block
		}
		// Recoveries are short: early moments count.
		gap := rnd.Float64()
		s.gap = time.Duration(gap * gap * float64(maxGap))
		f.second = s
	}
	return f
}

// kindOf returns the kind of that name, or nil.
func kindOf(name string) *kind {
	for i := range kinds {
		if kinds[i].name == name {
			return &kinds[i]
		}
	}
	return nil
}

// has reports whether the fault, or its second one, is something.
func (f *fault) has(is func(k *kind) bool) bool {
	return is(f.kind) || f.second != nil && is(f.second.kind)
}

// name names the kind, with that of a second fault.
func (f *fault) name() string {
	if f.second == nil {
		return f.kind.name
	}
	return f.kind.name + "+" + f.second.kind.name
}

// targets are the drivers that the fault is to harm.
func (f *fault) targets() []string {
	list := []string{f.target}
	if f.second != nil && f.second.target != f.target {
		list = append(list, f.second.target)
	}
	return list
}
