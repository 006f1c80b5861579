package qemu

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	stateFile = "state.json"
	qmpSocket = "qmp.sock"
	maxState  = 1 << 20
)

// state is what Adopt needs.
type state struct {
	Name    string        `json:"name"`
	PID     int           `json:"pid"`
	Started uint64        `json:"started"` // of the process, in clock ticks since the host's boot
	Boot    string        `json:"boot"`    // the host's boot ID
	Machine Machine       `json:"machine"`
	Accel   Accel         `json:"accel"`
	UID     int           `json:"uid"` // of QEMU, -1: the starter's
	GID     int           `json:"gid"`
	NoJail  bool          `json:"noJail"`
	Slots   int           `json:"slots"`
	Devices []deviceState `json:"devices"`
}

type deviceState struct {
	Slot int   `json:"slot"`
	Disk *Disk `json:"disk,omitempty"`
	NIC  *NIC  `json:"nic,omitempty"`
}

// save writes s so that a reader finds either the old or the new state.
func (s *state) save(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	fresh := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(fresh, b, 0o600); err != nil {
		return fmt.Errorf("qemu: save the state: %w", err)
	}
	if err := os.Rename(fresh, filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("qemu: save the state: %w", err)
	}
	return nil
}

func loadState(dir string) (*state, error) {
	f, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.PID <= 1 || s.Slots < 0 || s.Slots > MaxDevices || len(s.Devices) > s.Slots {
		return nil, fmt.Errorf("process %d, %d devices in %d slots", s.PID, len(s.Devices), s.Slots)
	}
	for _, d := range s.Devices {
		if (d.Disk == nil) == (d.NIC == nil) || d.Slot < 0 || d.Slot >= s.Slots {
			return nil, fmt.Errorf("a device in slot %d of %d that is neither disk nor network card", d.Slot, s.Slots)
		}
	}
	return &s, nil
}

// startTime returns when process pid started, in clock ticks since boot (proc(5), /proc/pid/stat field 22).
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// lifeline returns a file that becomes readable when process pid, which must have started at that time, ends.
func lifeline(pid int, started uint64) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	// The process that the descriptor stands for has not been reaped if it still has its start time.
	if t, err := startTime(pid); err != nil || t != started {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}
