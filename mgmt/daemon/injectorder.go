package daemon

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/mgmt/api"
)

// options reads the options of a fault. The first mistake is kept.
type options struct {
	set map[string]string
	err error
}

func (o *options) fail(name, want string) {
	if o.err == nil {
		o.err = api.Errorf(api.Invalid, "option %s=%s is not %s", name, o.set[name], want)
	}
}

// number returns a whole number within bounds.
func (o *options) number(name string, def, low, high uint64) uint64 {
	s, ok := o.set[name]
	if !ok {
		return def
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n < low || n > high {
		o.fail(name, "a number from "+strconv.FormatUint(low, 10)+" to "+strconv.FormatUint(high, 10))
	}
	return n
}

// chance returns a probability; 0: it was not given.
func (o *options) chance(name string) float64 {
	s, ok := o.set[name]
	if !ok {
		return 0
	}
	p, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(p) || p <= 0 || p > 1 {
		o.fail(name, "a chance above 0 up to 1")
	}
	return p
}

// choice returns one of a few words; the first is the default.
func (o *options) choice(name string, words ...string) string {
	s, ok := o.set[name]
	if !ok {
		return words[0]
	}
	if !slices.Contains(words, s) {
		o.fail(name, "one of "+strings.Join(slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" }), ", "))
	}
	return s
}

// errno returns the number of an error; def where none is given.
func (o *options) errno(name string, def int) int {
	s, ok := o.set[name]
	if !ok {
		return def
	}
	for e := unix.Errno(1); e < 134; e++ { // EHWPOISON is the last
		if unix.ErrnoName(e) == strings.ToUpper(s) {
			return int(e)
		}
	}
	o.fail(name, "the name of an error, such as EIO")
	return 0
}

// orderOf makes the order for a fault that the VM's process makes or arms, or returns nil where it is of another kind.
func orderOf(req *api.Inject) (*inject.Order, error) {
	set := &options{set: req.Set}
	kind, how, _ := strings.Cut(req.Kind, ":")
	o := &inject.Order{Fault: inject.Fault(kind), How: how, Seed: req.Seed}
	switch kind {
	case "exception":
	case "flip":
		o.Bits = int(set.number("bits", 1, 1, inject.MaxBits))
	case "hang":
		if how != "syscall" {
			return nil, nil
		}
		o.Fault, o.How = inject.Call, inject.Hang
	case "syscall":
		o.Errno = set.errno("errno", 0)
	case "io":
		o.Op = set.choice("op", "", inject.OpRead, inject.OpWrite, inject.OpFlush)
		switch how {
		case "error":
			o.Errno = set.errno("errno", int(unix.EIO))
			if set.choice("transient", "0", "1") == "1" {
				o.Errno = int([]unix.Errno{unix.EINTR, unix.EAGAIN}[req.Seed%2])
			}
		case "enospc":
			o.How, o.Errno = inject.Error, int(unix.ENOSPC)
		}
	case "bell":
		if how == "storm" {
			return nil, nil
		}
		o.Op = side(set)
	case "memory":
		if set.choice("from", "program", "vmm") == "program" {
			return nil, set.err
		}
		o.How, o.Leave = inject.Take, set.number("leave", 0, 0, math.MaxInt64)
	case "clock":
		o.How = set.choice("of", inject.Both, inject.Realtime)
		o.JumpMs = set.jump(o.Random())
	default:
		return nil, nil
	}
	if o.Armed() {
		o.Times, o.Chance = set.number("n", 1, 1, inject.MaxTimes), set.chance("p")
		if _, ok := req.Set["call"]; ok {
			nr := set.number("call", 0, 0, math.MaxInt32)
			o.Call = &nr
		}
	}
	switch how {
	case "delay":
		o.DelayMs = int64(set.number("ms", 20, 1, inject.MaxDelayMs))
	case "slow":
		o.DelayMs = int64(set.number("ms", 200, 1, inject.MaxDelayMs))
	}
	if set.err != nil {
		return nil, set.err
	}
	return o, o.Check()
}

// side returns which doorbells are meant, as inject.Order has it.
func side(set *options) string {
	if s := set.choice("side", "both", inject.OpKick, inject.OpCall); s != "both" {
		return s
	}
	return ""
}

// jump returns by how many milliseconds a clock is to jump.
func (o *options) jump(random *rand.Rand) int64 {
	s, ok := o.set["by"]
	if !ok {
		by := []time.Duration{time.Second, 10 * time.Second, time.Hour, 24 * time.Hour}[random.IntN(4)]
		if random.IntN(2) == 0 {
			by = -by
		}
		return by.Milliseconds()
	}
	d, err := time.ParseDuration(s)
	if err != nil || d.Milliseconds() == 0 || d.Abs().Milliseconds() > inject.MaxJumpMs {
		o.fail("by", "a time of at least a millisecond, such as 90s or -2h")
	}
	return d.Milliseconds()
}

// pick returns the named one of a set, or one of them by seed.
func pick[T any](set map[string]T, name string, random *rand.Rand) (string, T, error) {
	names := slices.Sorted(maps.Keys(set))
	if name == "" {
		name = names[random.IntN(len(names))]
	}
	v, ok := set[name]
	if !ok {
		return name, v, api.Errorf(api.Invalid, "%q is none of %s", name, strings.Join(names, ", "))
	}
	return name, v, nil
}
