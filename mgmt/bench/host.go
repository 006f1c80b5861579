package main

import (
	"fmt"
	"os"
	"runtime"
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
