package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// call does what the host asks for.
func (m *machine) call(c agent.Call, stop <-chan struct{}) (any, error) {
	switch c.Method {
	case agent.MethodStatus:
		return m.status(), nil
	case agent.MethodTime:
		var t agent.Time
		if err := agent.Decode(c.Params, &t); err != nil {
			return nil, err
		}
		ts := unix.NsecToTimespec(t.UnixNano)
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
			return nil, fmt.Errorf("set the clock: %w", err)
		}
		return nil, nil
	case agent.MethodNetwork:
		var n agent.Network
		if err := agent.Decode(c.Params, &n); err != nil {
			return nil, err
		}
		return nil, m.setNetwork(&n)
	case agent.MethodShutdown:
		var s agent.Shutdown
		if err := agent.Decode(c.Params, &s); err != nil {
			return nil, err
		}
		switch s.Mode {
		case agent.PowerOff, agent.Reboot, agent.Halt:
			go m.shutdown(s)
			return nil, nil
		}
		return nil, fmt.Errorf("no shutdown is called %q", s.Mode)
	case agent.MethodAwait, agent.MethodRelease:
		var d agent.Device
		if err := agent.Decode(c.Params, &d); err != nil {
			return nil, err
		}
		if (d.Serial == "") == (d.MAC == "") {
			return nil, errors.New("a device has either a serial number or a MAC address")
		}
		if c.Method == agent.MethodRelease {
			return nil, releaseDevice(&d)
		}
		return awaitDevice(&d)
	case agent.MethodWait:
		return m.waitMain(stop)
	}
	return nil, fmt.Errorf("no method is called %q", c.Method)
}

// waitMain returns how the main program ended.
func (m *machine) waitMain(stop <-chan struct{}) (any, error) {
	if !m.mainStarted {
		return nil, errors.New("there is no main program")
	}
	select {
	case <-m.mainDone:
		return m.mainExit, nil
	default:
	}
	select {
	case <-m.mainDone:
		return m.mainExit, nil
	case <-m.stopping:
	case <-stop:
	}
	// A shutdown ends the main program, too.
	select {
	case <-m.mainDone:
		return m.mainExit, nil
	case <-stop:
	case <-time.After(endWait):
	}
	return nil, errors.New("the guest is shutting down")
}

// endWait is how long the answer of waitMain can be that is due at a shutdown.
const endWait = 30 * time.Second

func (m *machine) status() agent.Status {
	s := agent.Status{UptimeMs: bootTime().Milliseconds(), Kernel: release(), Execs: m.server.Execs(), OrphansReaped: m.reaper.Orphans(),
		UnixNano: time.Now().UnixNano(), MainRunning: m.mainStarted}
	s.Hostname, _ = os.Hostname()
	select {
	case <-m.mainDone:
		x := m.mainExit
		s.Main, s.MainRunning = &x, false
	default:
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		s.Processes = int(info.Procs)
		s.Load1 = float64(info.Loads[0]) / (1 << 16)
	}
	memory := meminfo()
	s.MemoryKiB, s.MemoryFreeKiB = memory["MemTotal"], memory["MemAvailable"]
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		s.RootReadOnly = fs.Flags&unix.ST_RDONLY != 0
		s.RootTotalKiB, s.RootFreeKiB = fs.Blocks*uint64(fs.Bsize)/1024, fs.Bavail*uint64(fs.Bsize)/1024
	}
	return s
}

// meminfo returns /proc/meminfo, in KiB.
func meminfo() map[string]uint64 {
	all := make(map[string]uint64)
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return all
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		if words := strings.Fields(rest); len(words) > 0 {
			all[name], _ = strconv.ParseUint(words[0], 10, 64)
		}
	}
	return all
}
