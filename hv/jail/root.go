package jail

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const rootFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// emptyRoot replaces the process's file tree by an empty read-only one. It needs a mount namespace of the process's own and
// CAP_SYS_ADMIN over it, which a process has that was started in new namespaces.
func emptyRoot() error {
	// In a new PID namespace the first process has number 1; namespaces come all together (see hv.Launch). A
	// process that is not alone must not touch the root.
	if os.Getpid() != 1 {
		return ErrNotAlone
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err == unix.EINVAL {
		return errors.New("jail: the root directory is no mount point, as in a plain chroot; mount it, as containers do")
	} else if err != nil {
		return fmt.Errorf("jail: make the mounts private (CAP_SYS_ADMIN in the mount namespace is needed): %w", err)
	}
	dir, err := mountPoint()
	if err != nil {
		return err
	}
	if err := unix.Mount("grail", dir, "tmpfs", rootFlags, "size=4096,nr_inodes=1,mode=0555"); err != nil {
		return fmt.Errorf("jail: mount an empty root on %s: %w", dir, err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("jail: enter the empty root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err == nil {
		// The old root now covers the new one; what is below it appears when it goes.
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("jail: detach the host's files: %w", err)
		}
	} else if err != unix.EINVAL {
		return fmt.Errorf("jail: pivot_root: %w", err)
	} else {
		// An initial ramfs cannot be pivoted away: cover it for good.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("jail: move the empty root over the host's: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("jail: change the root: %w", err)
		}
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("jail: enter the empty root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|rootFlags, ""); err != nil {
		return fmt.Errorf("jail: make the empty root read-only: %w", err)
	}
	return nil
}

// mountPoint returns a directory below the root.
func mountPoint() (string, error) {
	for _, dir := range []string{"/tmp", "/proc", "/dev", "/usr", "/etc", "/var"} {
		if fi, err := os.Lstat(dir); err == nil && fi.IsDir() {
			return dir, nil
		}
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return "", fmt.Errorf("jail: look for a directory to mount on: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			return "/" + e.Name(), nil
		}
	}
	return "", fmt.Errorf("jail: no directory to mount the empty root on: %w", unix.ENOENT)
}
