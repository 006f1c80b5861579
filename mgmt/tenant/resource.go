package tenant

import (
	"fmt"
	"iter"
	"slices"
	"strconv"

	"github.com/grailos/grail/mgmt/size"
)

// Resource names one thing that is subdivided, such as "cpu" or "blk0:ops".
type Resource string

// The resources that every host has. Those of drivers are the driver's name with one of the suffixes.
const (
	CPUTime     Resource = "cpu"
	MemoryBytes Resource = "memory"
	VMCount     Resource = "vms"
	ThreadCount Resource = "threads"

	opsOf     = ":ops"
	bytesOf   = ":bytes"
	packetsOf = ":packets"
)

// counted reports whether a domain that is given none of the resource is not limited in it. Of the others it owns nothing then.
func (r Resource) counted() bool { return r == VMCount || r == ThreadCount }

// what returns what is asked for, in words; nothing where the amount says it.
func (r Resource) what() string {
	switch r {
	case CPUTime:
		return "a CPU guarantee"
	case MemoryBytes:
		return "reserved memory"
	case VMCount, ThreadCount:
		return ""
	}
	return "a guarantee of " + string(r)
}

// Format writes an amount of the resource for a person.
func (r Resource) Format(n int64) string {
	switch r {
	case CPUTime:
		return Milli(n).String()
	case MemoryBytes:
		return formatBytes(n)
	case VMCount:
		return plural(n, "VM")
	case ThreadCount:
		return plural(n, "thread")
	}
	return strconv.FormatInt(n, 10) + "/s"
}

// formatBytes writes an amount exactly if it is a whole number of MiB, and else rounded to tenths of one.
func formatBytes(n int64) string {
	const mib = 1 << 20
	if n%mib == 0 || n < 0 {
		return size.Format(uint64(max(n, 0)))
	}
	return fmt.Sprintf("%.1fM", float64(n)/mib)
}

func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.FormatInt(n, 10) + " " + what + "s"
}

// amount is how much of a resource a share asks for.
type amount struct {
	of Resource
	n  int64
}

// amounts lists what a share asks for; what it does not ask for is left out.
func (s *Share) amounts() iter.Seq[amount] {
	return func(yield func(amount) bool) {
		list := []amount{
			{CPUTime, int64(max(s.CPU.Guarantee, s.CPU.RealTime.Milli()))}, {MemoryBytes, s.Memory.Reserved},
			{VMCount, s.VMs}, {ThreadCount, s.Threads},
		}
		for name, d := range s.Devices {
			r := Resource(name)
			list = append(list, amount{r + opsOf, d.Ops.Guarantee}, amount{r + bytesOf, d.Bytes.Guarantee}, amount{r + packetsOf, d.Packets.Guarantee})
		}
		list = slices.DeleteFunc(list, func(a amount) bool { return a.n == 0 })
		slices.SortFunc(list, func(a, b amount) int { return compare(a.of, b.of) })
		for _, a := range list {
			if !yield(a) {
				return
			}
		}
	}
}

// compare orders resources: those of the host first.
func compare(a, b Resource) int {
	rank := func(r Resource) int {
		if i := slices.Index([]Resource{CPUTime, MemoryBytes, VMCount, ThreadCount}, r); i >= 0 {
			return i
		}
		return 9
	}
	if c := rank(a) - rank(b); c != 0 {
		return c
	}
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
