package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// sysfs is where the kernel tells of its devices.
const sysfs = "/sys"

// awaitDevice returns what the kernel calls a device, once it is there.
func awaitDevice(d *agent.Device) (agent.Found, error) {
	wait := diskWait
	if d.WaitMs > 0 {
		wait = time.Duration(d.WaitMs) * time.Millisecond
	}
	var name string
	err := await(wait, func() (err error) {
		name, _, err = lookUp(d)
		return err
	})
	return agent.Found{Name: name}, err
}

// lookUp returns a device's name and its folder in sysfs.
func lookUp(d *agent.Device) (name, dir string, err error) {
	if d.Serial != "" {
		path, err := findDisk(sysfs+"/block", &agent.Disk{Serial: d.Serial})
		name = filepath.Base(path)
		return name, sysfs + "/block/" + name, err
	}
	link, err := findLink(&agent.Interface{MAC: d.MAC})
	if err != nil {
		return "", "", err
	}
	name = link.Attrs().Name
	return name, sysfs + "/class/net/" + name, nil
}

// releaseDevice has the kernel let go of a device. Left to itself, the kernel gives up a disk at once, whoever uses it, and fails what is
// written to it from then on. So a disk is claimed first, which the kernel refuses while it is in use, and is nobody else's until it is gone.
func releaseDevice(d *agent.Device) error {
	name, dir, err := lookUp(d)
	if err != nil {
		return err
	}
	slot, err := findSlot(sysfs, dir)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d.Serial != "" {
		fd, err := claim(name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	// It is written when the device is gone (Linux, Documentation/ABI/testing/sysfs-bus-pci, slots).
	if err := os.WriteFile(slot, []byte("0"), 0); err != nil {
		return fmt.Errorf("%s: the kernel does not let go of it: %w", name, err)
	}
	return nil
}

// claim makes a disk nobody else's, and returns it with everything written to it. Errors: it is in use.
func claim(name string) (fd int, err error) {
	path := "/dev/" + name
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	users := diskUsers(name)
	switch {
	case err == unix.EBUSY || err == nil && len(users) > 0:
		if err == nil {
			unix.Close(fd)
		}
		if len(users) == 0 {
			users = []string{"in use by the guest's kernel"}
		}
		return -1, fmt.Errorf("%s is %s", path, strings.Join(users, ", "))
	case err != nil:
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	if err := unix.Fsync(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write back %s: %w", path, err)
	}
	return fd, nil
}

// findSlot returns the file that switches off the slot with the PCI device of a device, whose folder in sysfs is dir.
func findSlot(sys, dir string) (string, error) {
	at, err := filepath.EvalSymlinks(filepath.Join(dir, "device")) // such as …/0000:02:00.0/virtio3
	if err != nil {
		return "", err
	}
	pci := filepath.Base(filepath.Dir(at))
	slots, err := filepath.Glob(filepath.Join(sys, "bus/pci/slots/*/address"))
	if err != nil {
		return "", err
	}
	for _, s := range slots {
		b, err := os.ReadFile(s)
		if address := strings.TrimSpace(string(b)); err == nil && address != "" && strings.HasPrefix(pci, address+".") {
			return filepath.Join(filepath.Dir(s), "power"), nil
		}
	}
	return "", fmt.Errorf("device %s is in no slot that can be switched off", pci)
}

// diskUsers says what uses a disk or one of its partitions.
func diskUsers(name string) []string {
	dir := filepath.Join(sysfs, "block", name)
	parts := []string{name}
	if list, err := filepath.Glob(filepath.Join(dir, name+"*")); err == nil {
		for _, p := range list {
			parts = append(parts, filepath.Base(p))
		}
	}
	numbers := map[string]bool{}
	for _, p := range parts {
		if b, err := os.ReadFile(filepath.Join(sysfs, "class/block", p, "dev")); err == nil {
			numbers[strings.TrimSpace(string(b))] = true
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	users := mountedAt(string(mounts), numbers)
	swaps, _ := os.ReadFile("/proc/swaps")
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 && slices.Contains(parts, filepath.Base(f[0])) {
			users = append(users, "swap space")
		}
	}
	loops, _ := filepath.Glob(sysfs + "/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && slices.Contains(parts, filepath.Base(strings.TrimSpace(string(b)))) {
			users = append(users, "behind "+filepath.Base(filepath.Dir(filepath.Dir(l))))
		}
	}
	return append(users, openIn("/proc", numbers)...)
}

// mountedAt says where the devices with these numbers are mounted (proc(5), /proc/pid/mountinfo).
func mountedAt(mounts string, numbers map[string]bool) (users []string) {
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 4 && numbers[f[2]] {
			users = append(users, "mounted at "+f[4])
		}
	}
	return users
}

// openIn says which processes have one of the devices with these numbers open, other than this one.
func openIn(proc string, numbers map[string]bool) (users []string) {
	list, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	seen := map[string]bool{}
	for _, path := range list {
		pid := filepath.Base(filepath.Dir(filepath.Dir(path)))
		var st unix.Stat_t
		if pid == strconv.Itoa(os.Getpid()) || seen[pid] || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		if numbers[fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))] {
			seen[pid] = true
			name, err := os.ReadFile(filepath.Join(proc, pid, "comm"))
			if errors.Is(err, os.ErrNotExist) {
				continue // it has just ended
			}
			users = append(users, fmt.Sprintf("open in process %s (%s)", pid, strings.TrimSpace(string(name))))
		}
	}
	return users
}
