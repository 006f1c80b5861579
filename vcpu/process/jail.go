//go:build linux && amd64

package process

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// emptyRoot replaces the whole mount tree by an empty read-only file system. The mount namespace is the
// child's own.
func emptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	dir, err := anyDirectory()
	if err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", dir, "tmpfs", flags, "size=4096,nr_inodes=2,mode=0555"); err != nil {
		return fmt.Errorf("mounting an empty root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("entering the empty root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err == nil {
		// The old root now lies over the new one, at the same place.
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("detaching the host's files: %w", err)
		}
	} else {
		// pivot_root cannot move away the initial ramfs.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving the empty root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("changing to the empty root: %w", err)
		}
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("entering the empty root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("making the empty root read-only: %w", err)
	}
	return nil
}

// anyDirectory returns some directory other than the root to mount on.
func anyDirectory() (string, error) {
	for _, dir := range []string{"/tmp", "/proc", "/dev"} {
		if fi, err := os.Lstat(dir); err == nil && fi.IsDir() {
			return dir, nil
		}
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return "", fmt.Errorf("looking for a directory to mount on: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			return filepath.Join("/", e.Name()), nil
		}
	}
	return "", fmt.Errorf("no directory to mount on: %w", unix.ENOENT)
}

// dropPrivileges takes on the user that the guest is to have, and gives up every capability for good. It acts on the
// calling thread, whose credentials are the ones that execve keeps.
func dropPrivileges(spec *childSpec) error {
	for c := uintptr(0); ; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL {
			break // one past the kernel's last capability
		} else if err == unix.EPERM {
			break // no privilege to begin with: weak mode without root
		} else if err != nil {
			return fmt.Errorf("dropping capability %d: %w", c, err)
		}
	}
	if !spec.KeepIDs {
		if err := setIDs(spec.ID); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing ambient capabilities: %w", err)
	}
	var none [2]unix.CapUserData
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("dropping capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no-new-privileges: %w", err)
	}
	// A change of credentials clears it, so set it again.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("setting the parent-death signal: %w", err)
	}
	return nil
}

// closeOnExec marks every descriptor, so that the guest starts with none.
func closeOnExec() error {
	if unix.CloseRange(0, ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	return closeEachOnExec()
}

// closeEachOnExec is for Linux before 5.11. The root may be gone, so there is no /proc/self/fd to list.
func closeEachOnExec() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	for fd := 0; fd < int(min(lim.Max, 1<<20)); fd++ {
		unix.CloseOnExec(fd)
	}
	return nil
}

type limit struct {
	Resource int
	Value    uint64
}

// limitsFor are the resource limits of a guest. Those of memory come last: see enter.
func limitsFor(cfg *Config) []limit {
	data, address := uint64(unix.RLIM_INFINITY), uint64(addressSpace)
	if cfg.MemoryBytes != 0 {
		data = cfg.MemoryBytes + MemorySlack
		address += 4 * cfg.MemoryBytes
	}
	return []limit{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, uint64(cfg.MaxFiles)},
		{unix.RLIMIT_FSIZE, 0},
		{unix.RLIMIT_MEMLOCK, 0},
		{rlimitMsgQueue, 0},
		{rlimitSigPending, uint64(4*cfg.MaxThreads + 1024)},
		{rlimitNice, 0},
		{rlimitRTPrio, 0},
		{unix.RLIMIT_STACK, stackBytes},
		{unix.RLIMIT_AS, address},
		{unix.RLIMIT_DATA, data},
	}
}

// Resource numbers that x/sys lacks (asm-generic/resource.h).
const (
	rlimitSigPending = 11
	rlimitMsgQueue   = 12
	rlimitNice       = 13
	rlimitRTPrio     = 14
)

// setLimits lowers the process's own limits, hard ones included, and returns those of memory for enter.
func setLimits(list []limit) (memory []limit, err error) {
	for _, l := range list {
		var old unix.Rlimit
		if err := unix.Prlimit(0, l.Resource, nil, &old); err != nil {
			return nil, fmt.Errorf("reading resource limit %d: %w", l.Resource, err)
		}
		l.Value = min(l.Value, old.Max)
		if l.Resource == unix.RLIMIT_AS || l.Resource == unix.RLIMIT_DATA {
			memory = append(memory, l)
			continue
		}
		if err := unix.Prlimit(0, l.Resource, &unix.Rlimit{Cur: l.Value, Max: l.Value}, nil); err != nil {
			return nil, fmt.Errorf("setting resource limit %d to %d: %w", l.Resource, l.Value, err)
		}
	}
	return memory, nil
}
