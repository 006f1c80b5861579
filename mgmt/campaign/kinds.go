package main

import (
	"math/rand/v2"
	"time"

	"github.com/grailos/grail/hv"
)

// way is how a fault is brought about.
type way int

// The ways.
const (
	crash      way = iota // graild is asked to crash the driver
	inject                // graild is asked to inject it into the driver
	killVMM               // the process of the driver VM is killed behind graild's back
	killSpare             // the process of its spare
	killClient            // the process of one of its clients
	killGraild            // graild, which is started again a little later
	upgrade               // none: the driver's program is replaced
)

// kind is a kind of fault.
type kind struct {
	name   string
	way    way
	weight int // how often it is chosen, against the others
	on     []string
	set    map[string]string // for inject

	dies   bool // the driver dies of it, by itself or because it is found out
	killed bool // its process may end without a last word
	taints bool // a driver that survives it is not what it was, and is replaced before the next fault
	fails  bool // clients may be told errors: it is in what the host's device says
	lies   bool // it may end SILENT: the driver's own memory is not what it was
	look   time.Duration
}

// Drivers of a rig that are harmed.
const (
	block   = "blk0"
	network = "net0"
	console = "con0"
)

var (
	all    = []string{block, network, console}
	onDisk = []string{block}
)

// How long a driver is looked at that may survive a fault.
const (
	shortLook = 80 * time.Millisecond
	longLook  = 250 * time.Millisecond
)

// kinds are the kinds of fault. A fault's seed chooses among them, so that their order and weights are part of what a seed means.
var kinds = []kind{
	{name: "kill", way: crash, weight: 10, on: all, dies: true, killed: true},
	{name: "fault", way: crash, weight: 6, on: all, dies: true},
	{name: "hang", way: crash, weight: 5, on: all, dies: true, killed: true},
	{name: "stall", way: crash, weight: 1, on: onDisk, dies: true, killed: true},
	{name: "vmm:kill", way: killVMM, weight: 8, on: all, dies: true, killed: true},
	{name: "spare:kill", way: killSpare, weight: 4, on: all, killed: true, look: shortLook},
	{name: "client:kill", way: killClient, weight: 3, on: []string{block, network}, killed: true, look: shortLook},
	{name: "graild:kill", way: killGraild, weight: 4, on: all, look: shortLook},
	{name: "upgrade", way: upgrade, weight: 2, on: all, look: shortLook},
}

// seconds are the kinds that may follow another one during its recovery.
var seconds = []string{"kill", "vmm:kill", "spare:kill", "client:kill", "graild:kill"}

// How often a second fault comes, and when.
const (
	secondShare = 5 // one in so many; more often where the first one does nothing by itself
	maxGap      = 150 * time.Millisecond
	maxLead     = 15 * time.Millisecond
)

// fault is one fault, all of which follows from its seed and the list of kinds.
type fault struct {
	seed   uint64
	engine hv.Engine
	kind   *kind
	target string
	lead   time.Duration // how long clients are at work before it
	arg    uint64        // seed for inject
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

// newSeed returns the seed of a fault on rigs with that engine: the lowest bit tells.
func newSeed(rnd *rand.Rand, e hv.Engine) uint64 {
	seed := rnd.Uint64N(maxSeed) &^ 1
	if e == hv.EngineProcess {
		seed |= 1
	}
	return seed
}

// plan returns the fault of a seed, of one of the given kinds.
func plan(seed uint64, among []kind) fault {
	rnd := rand.New(rand.NewPCG(seed, 0))
	f := fault{seed: seed, engine: hv.EngineKVM}
	if seed&1 != 0 {
		f.engine = hv.EngineProcess
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
	f.lead = time.Duration(rnd.Int64N(int64(maxLead)))
	f.pause = time.Duration(rnd.Int64N(int64(maxGap)))
	f.arg = rnd.Uint64N(maxSeed)
	share := secondShare
	if !f.kind.dies && f.kind.way != inject {
		share = 2
	}
	if rnd.IntN(share) == 0 {
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
