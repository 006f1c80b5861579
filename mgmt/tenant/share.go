package tenant

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Milli is processor time in thousandths of a core.
type Milli int64

// String returns the amount as a person writes it, such as "1.5 cores".
func (m Milli) String() string {
	s := strconv.FormatFloat(float64(m)/1000, 'f', -1, 64)
	if m == 1000 {
		return s + " core"
	}
	return s + " cores"
}

// Share is what a domain owns or asks for. Zero fields ask for nothing and limit nothing, except Weight, where zero is DefaultWeight.
type Share struct {
	CPU    CPU    `json:"cpu,omitzero"`
	Memory Memory `json:"memory,omitzero"`
	// Devices are shares in driver VMs, by the driver's name.
	Devices map[string]Device `json:"devices,omitempty"`
	VMs     int64             `json:"vms,omitempty"`     // how many there may be; 0: as many as the parent allows
	Threads int64             `json:"threads,omitempty"` // of all VMs together; 0: as many as the parent allows
}

// CPU is a share in processor time.
type CPU struct {
	Guarantee Milli     `json:"guarantee,omitempty"` // delivered whenever the domain can use it
	Cap       Milli     `json:"cap,omitempty"`       // never exceeded; 0: none of its own
	Weight    int64     `json:"weight,omitempty"`    // of the claim to what nobody is guaranteed, beside its siblings'
	Set       string    `json:"set,omitempty"`       // processors to run on, such as "0-2,5"; empty: the parent's
	RealTime  *RealTime `json:"realTime,omitempty"`  // of a VM
}

// RealTime is a budget of processor time in every period, in microseconds, for one thread. It is part of the guarantee.
type RealTime struct {
	RuntimeUs int64 `json:"runtimeUs"`
	PeriodUs  int64 `json:"periodUs"`
}

// leastExitsUs is what a thread's sleep and wake-up cost in the VMM, in every period.
const leastExitsUs = 100

// GrantUs returns what the thread is given in every period. The budget is the guest's: its exits to the VMM are paid for by an eighth more, which also
// lets it catch up after a late period, since the kernel's periods begin when the thread first ran and not when the guest thinks that one begins. And
// by a twentieth of the period: a guest's runtime, as Go's, sends its threads a signal every 10 ms, which takes half a millisecond on the slowest machines, asleep or not.
func (r *RealTime) GrantUs() int64 {
	return min(r.RuntimeUs+(r.RuntimeUs+7)/8+max(r.PeriodUs/20, leastExitsUs), r.PeriodUs)
}

// Milli returns the rate of what is given, rounded up.
func (r *RealTime) Milli() Milli {
	if r == nil {
		return 0
	}
	return Milli((r.GrantUs()*1000 + r.PeriodUs - 1) / r.PeriodUs)
}

// Memory is a share in memory, in bytes.
type Memory struct {
	Reserved int64 `json:"reserved,omitempty"` // never taken away
	Limit    int64 `json:"limit,omitempty"`    // bound of what is used, the reserved part included; 0: none of its own
	// VMM is what a VM's VMM may use beyond Limit, before the memory fence ends it. Nobody asks for it.
	VMM int64 `json:"-"`
}

// Device is a share in a driver VM's work.
type Device struct {
	Ops     Rate `json:"ops,omitzero"`     // requests a second
	Bytes   Rate `json:"bytes,omitzero"`   // bytes a second
	Packets Rate `json:"packets,omitzero"` // frames a second
	// CPU is what of a VM's own guarantee of processor time the driver gets, beside its own, for as long as both run.
	CPU Milli `json:"cpu,omitempty"`
}

// Rate is a share in a rate.
type Rate struct {
	Guarantee int64 `json:"guarantee,omitempty"`
	Cap       int64 `json:"cap,omitempty"`    // 0: none of its own
	Weight    int64 `json:"weight,omitempty"` // 0: DefaultWeight
}

// Bounds of shares.
const (
	DefaultWeight = 100
	MaxWeight     = 10_000
	MaxMilli      = 1_000_000 // of a host with 1,000 cores
	MinCap        = Milli(10) // below it the kernel's quota has no room
	maxAmount     = 1 << 60   // of any other amount: sums of a million of them do not overflow tests below

	// What SCHED_DEADLINE takes, and a period that is worth it (sched(7)).
	minRuntimeUs, maxPeriodUs = 100, 1_000_000
)

// weight returns a weight with the default filled in.
func weight(w int64) int64 {
	if w == 0 {
		return DefaultWeight
	}
	return w
}

// Check refuses shares that make no sense by themselves. processors is how many the host has, 0 if that does not matter. Errors are one line
// for the person who asked.
func (s *Share) Check(processors int) error {
	c := &s.CPU
	switch {
	case c.Guarantee < 0:
		return fmt.Errorf("a CPU guarantee of %v is negative; give a number of cores, or 0 for none", c.Guarantee)
	case c.Guarantee > MaxMilli || c.Cap > MaxMilli:
		return fmt.Errorf("more than %v cannot be given away", Milli(MaxMilli))
	case c.Cap < 0:
		return fmt.Errorf("a CPU cap of %v is negative; give a number of cores, or 0 for none", c.Cap)
	case c.Cap > 0 && c.Cap < MinCap:
		return fmt.Errorf("a CPU cap of %v cannot be kept; give at least %v, or 0 for none", c.Cap, MinCap)
	case c.Cap > 0 && c.Guarantee > c.Cap:
		return fmt.Errorf("a CPU guarantee of %v is more than the cap of %v; raise the cap, or leave it out", c.Guarantee, c.Cap)
	}
	if err := checkWeight("a CPU weight", c.Weight); err != nil {
		return err
	}
	if c.Set != "" {
		set, err := ParseSet(c.Set)
		if err != nil {
			return err
		}
		if processors > 0 && set[len(set)-1] >= processors {
			return fmt.Errorf("processor %d of the set %q is not there; this host has 0 to %d", set[len(set)-1], c.Set, processors-1)
		}
	}
	if err := c.RealTime.check(); err != nil {
		return err
	}
	if c.RealTime != nil && c.Set != "" {
		return fmt.Errorf("a real-time budget and a set of processors cannot be had together; the kernel takes real-time threads on all processors only")
	}
	m := &s.Memory
	if m.Reserved < 0 || m.Limit < 0 || m.Reserved > maxAmount || m.Limit > maxAmount {
		return fmt.Errorf("memory of %d bytes reserved and %d at most cannot be", m.Reserved, m.Limit)
	}
	if m.Limit > 0 && m.Reserved > m.Limit {
		return fmt.Errorf("reserved memory of %d bytes is more than the limit of %d; raise the limit, or leave it out", m.Reserved, m.Limit)
	}
	if s.VMs < 0 || s.Threads < 0 || s.VMs > maxAmount || s.Threads > maxAmount {
		return fmt.Errorf("%d VMs and %d threads cannot be; give numbers from 1 on, or 0 for no limit", s.VMs, s.Threads)
	}
	var funded Milli
	for name, d := range s.Devices {
		if d.CPU < 0 || d.CPU > MaxMilli {
			return fmt.Errorf("driver %s: %v of the VM's guarantee cannot be; give a number of cores, or 0 for none", name, d.CPU)
		}
		if funded += d.CPU; funded > max(c.Guarantee-c.RealTime.Milli(), 0) {
			return fmt.Errorf("drivers would get %v of a CPU guarantee of %v beside real-time budgets; raise the guarantee, or give them less",
				funded, max(c.Guarantee-c.RealTime.Milli(), 0))
		}
		if name == "" || strings.ContainsAny(name, "/:,= ") {
			return fmt.Errorf("there is no driver %q", name)
		}
		for what, r := range d.rates() {
			if err := r.check("driver " + name + ", " + what); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *Device) rates() map[string]*Rate {
	return map[string]*Rate{"requests/s": &d.Ops, "bytes/s": &d.Bytes, "frames/s": &d.Packets}
}

func (r *Rate) check(what string) error {
	switch {
	case r.Guarantee < 0 || r.Cap < 0 || r.Guarantee > maxAmount || r.Cap > maxAmount:
		return fmt.Errorf("%s: %d guaranteed and %d at most cannot be", what, r.Guarantee, r.Cap)
	case r.Cap > 0 && r.Guarantee > r.Cap:
		return fmt.Errorf("%s: a guarantee of %d is more than the cap of %d", what, r.Guarantee, r.Cap)
	}
	return checkWeight(what+": a weight", r.Weight)
}

func checkWeight(what string, w int64) error {
	if w < 0 || w > MaxWeight {
		return fmt.Errorf("%s of %d cannot be; give 1 to %d", what, w, MaxWeight)
	}
	return nil
}

func (r *RealTime) check() error {
	if r == nil {
		return nil
	}
	if r.PeriodUs < 1 || r.PeriodUs > maxPeriodUs || r.RuntimeUs < minRuntimeUs || r.RuntimeUs > r.PeriodUs {
		return fmt.Errorf("a real-time budget of %d µs of every %d µs cannot be; give at least %d µs of at most %d µs, such as 5ms/20ms",
			r.RuntimeUs, r.PeriodUs, minRuntimeUs, maxPeriodUs)
	}
	return nil
}

// ParseCores reads a number of cores, such as 0.5.
func ParseCores(s string) (Milli, error) {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsNaN(f):
		return 0, fmt.Errorf("%q is no number of cores; give one such as 0.5", s)
	case f < 0:
		return 0, fmt.Errorf("%q is negative; give a number of cores such as 0.5", s)
	case f > MaxMilli/1000:
		return 0, fmt.Errorf("%s cores are more than any host has", s)
	}
	return Milli(math.Round(f * 1000)), nil
}

// maxProcessors bounds the numbers of processors in a set.
const maxProcessors = 4096

// ParseSet reads a list of processors as the kernel writes it (cpuset(7), list format) and returns them in ascending order.
func ParseSet(s string) ([]int, error) {
	bad := func() ([]int, error) {
		return nil, fmt.Errorf("%q is no set of processors; give one such as 0-2,5", s)
	}
	var in [maxProcessors]bool
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 32)
		b := a
		if err == nil && ranged {
			b, err = strconv.ParseUint(last, 10, 32)
		}
		if err != nil || b < a || b >= maxProcessors {
			return bad()
		}
		for n := a; n <= b; n++ {
			in[n] = true
		}
	}
	var list []int
	for n, ok := range in {
		if ok {
			list = append(list, n)
		}
	}
	return list, nil
}

// FormatSet writes a set of processors as ParseSet reads it.
func FormatSet(set []int) string {
	var parts []string
	for i := 0; i < len(set); {
		j := i
		for j+1 < len(set) && set[j+1] == set[j]+1 {
			j++
		}
		if j == i {
			parts = append(parts, strconv.Itoa(set[i]))
		} else {
			parts = append(parts, strconv.Itoa(set[i])+"-"+strconv.Itoa(set[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}
