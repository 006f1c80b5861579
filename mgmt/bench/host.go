package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
)

// host is what the numbers depend on.
type host struct {
	kernel    string
	processor string
	cores     int
	hardware  bool // the processor has a virtualization extension
}

func lookAtHost() host {
	h := host{cores: runtime.NumCPU(), processor: runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.kernel = unix.ByteSliceToString(u.Release[:])
	}
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			h.processor = strings.TrimSpace(value)
		case "flags":
			for _, f := range strings.Fields(value) {
				h.hardware = h.hardware || f == "vmx" || f == "svm"
			}
		}
	}
	return h
}

// ticks returns the processor time of the host so far, in clock ticks, and how much of it another system on the same hardware took (proc(5), /proc/stat).
func ticks() (all, stolen int64) {
	const steal = 7
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(strings.TrimPrefix(line, "cpu ")) {
		n, _ := strconv.ParseInt(f, 10, 64)
		if i <= steal { // what follows is part of the first two
			all += n
		}
		if i == steal {
			stolen = n
		}
	}
	return all, stolen
}

// describe is the table's head.
func (h host) describe(e hv.Engine) string {
	kind := "no KVM: engine process"
	switch {
	case e == hv.EngineKVM && h.hardware:
		kind = "hardware KVM"
	case e == hv.EngineKVM:
		kind = "software KVM (no vmx or svm)"
	}
	load := ""
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(b), " ")
		load = ", load " + load
	}
	return fmt.Sprintf("%d cores (%s), %s, Linux %s, %s%s", h.cores, h.processor, kind, h.kernel, runtime.Version(), load)
}
