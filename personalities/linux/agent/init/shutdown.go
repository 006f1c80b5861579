package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// onceMode lets the first shutdown pass.
type onceMode struct{ once sync.Once }

// Bounds of a shutdown's parts.
const (
	killWait  = 2 * time.Second // until killed processes are gone: one that waits for a device may never go
	drainWait = time.Second     // until the host has its answers
	maxGrace  = 10 * time.Minute
)

// shutdown ends the machine in good order. The first call counts; it does not return.
func (m *machine) shutdown(s agent.Shutdown) {
	m.stop.once.Do(func() {
		defer func() {
			if v := recover(); v != nil {
				m.panicked(v)
				m.reset()
			}
		}()
		grace := agent.DefaultGrace
		for _, ms := range []int64{m.config.GraceMs, s.GraceMs} {
			if ms > 0 {
				grace = min(time.Duration(min(ms, maxGrace.Milliseconds()))*time.Millisecond, maxGrace)
			}
		}
		say("%s", s.Mode)
		close(m.stopping)
		// A shell that a person talks to ends only when it is hung up.
		for _, n := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGCONT} {
			_ = unix.Kill(-1, n) // none left
		}
		if !m.reaper.WaitAll(grace) {
			say("some programs did not end within %v and are killed", grace)
			_ = unix.Kill(-1, unix.SIGKILL)
			if !m.reaper.WaitAll(killWait) {
				say("some programs cannot be killed")
			}
		}
		if m.server != nil {
			m.server.Drain(drainWait)
		}
		unix.Sync()
		if err := unmountAll(); err != nil {
			say("%v", err)
		}
		unix.Sync()
		switch s.Mode {
		case agent.Halt:
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
		case agent.PowerOff:
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
		m.reset()
	})
}

// reset restarts the machine as it is.
func (m *machine) reset() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}
