package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// jailName is the launcher's name, by which JailMain knows what it is for.
	jailName = "grailqemu"
	// jailEmpty is the directory, in the root with which QEMU starts, that becomes its root.
	jailEmpty = "/empty"
	// jailFailed is the launcher's exit status when there is no jail.
	jailFailed = 125
)

// jailSpec is what the launcher does.
type jailSpec struct {
	Args      []string // of QEMU; the first is its path
	Root      string   // directory to mount the new root on; "": keep the caller's
	Run       string   // directory that QEMU sees as runDir
	ReadOnly  []string
	Devices   []string
	Caps      []int // capabilities left to QEMU until it has changed its root
	FileBytes uint64
	OpenFiles uint64
}

// defaultReadOnly is where distributions keep what QEMU needs until the machine is set up.
var defaultReadOnly = []string{"/usr", "/lib", "/lib64", "/lib32", "/libx32", "/bin", "/etc/ld.so.cache", "/etc/ld.so.conf",
	"/etc/ld.so.conf.d", "/etc/alternatives", "/nix/store", "/gnu/store"}

// JailMain is the launcher of QEMU's jail: it does nothing unless the program was started as that, and then does not
// return. A program that is to be its own launcher (Jail.Launcher is empty) calls it first thing in main.
func JailMain() {
	if len(os.Args) != 3 || os.Args[0] != jailName {
		return
	}
	err := enterJail(os.Args[1])
	fmt.Fprintf(os.Stderr, "%s: %v\n", jailName, err)
	os.Exit(jailFailed)
}

// enterJail becomes QEMU. It returns only if it fails.
func enterJail(spec string) error {
	// Privileges belong to threads; the one that calls execve counts.
	runtime.LockOSThread()
	var s jailSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil || len(s.Args) == 0 {
		return fmt.Errorf("bad specification: %w", err)
	}
	if s.Root != "" {
		// QEMU's own user has to find its way whatever the caller keeps from others.
		old := unix.Umask(0o022)
		if err := newRoot(&s); err != nil {
			return err
		}
		unix.Umask(old)
	}
	if err := limits(&s); err != nil {
		return err
	}
	// A file that has reached its limit is not worth the VM's life.
	signal.Ignore(syscall.SIGXFSZ)
	if err := dropPrivileges(s.Caps, s.Root != ""); err != nil {
		return err
	}
	err := syscall.Exec(s.Args[0], s.Args, []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=/", "TMPDIR=/"})
	return fmt.Errorf("start %s: %w", s.Args[0], err)
}

func limits(s *jailSpec) error {
	for what, n := range map[int]uint64{
		unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: s.FileBytes, unix.RLIMIT_NOFILE: s.OpenFiles, unix.RLIMIT_MSGQUEUE: 0,
	} {
		var have unix.Rlimit
		if err := unix.Getrlimit(what, &have); err != nil {
			return fmt.Errorf("resource limit %d: %w", what, err)
		}
		n = min(n, have.Max)
		// By package syscall: package os would put the limit of open files back at execve otherwise.
		if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("resource limit %d: %w", what, err)
		}
	}
	return nil
}

// dropPrivileges leaves the calling thread and what it executes with no capability but caps, for good.
func dropPrivileges(caps []int, own bool) error {
	keep := uint64(0)
	for _, c := range caps {
		keep |= 1 << c
	}
	if own {
		for c := 0; c <= 63; c++ {
			if keep&(1<<c) != 0 {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); errors.Is(err, unix.EINVAL) {
				break // the kernel knows no more
			} else if err != nil {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	return nil
}

// ownUser reports whether QEMU can have a user of its own: the caller is root, and of a user namespace that has that user
// (user_namespaces(7)). One that only has root is a person's, who is not.
func (p *plan) ownUser() bool {
	if os.Geteuid() != 0 {
		return false
	}
	m, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || mapped(string(m), p.Jail.UID)
}

// mapped reports whether a uid_map has a user.
func mapped(uidMap string, uid int) bool {
	for line := range strings.Lines(uidMap) {
		var inside, outside, count int64
		if n, _ := fmt.Sscan(line, &inside, &outside, &count); n == 3 && int64(uid) >= inside && int64(uid)-inside < count {
			return true
		}
	}
	return false
}

const rootFlags = unix.MS_NOSUID | unix.MS_NODEV

// newRoot gives the process, the first of its own mount and PID namespaces, a root with nothing but what QEMU reads
// before the guest starts.
func newRoot(s *jailSpec) error {
	if os.Getpid() != 1 {
		return errors.New("not in namespaces of its own")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("grail", s.Root, "tmpfs", rootFlags, "size=1m,nr_inodes=512,mode=0755"); err != nil {
		return fmt.Errorf("mount a root on %s: %w", s.Root, err)
	}
	for _, p := range s.ReadOnly {
		if err := bindReadOnly(s.Root, p); err != nil {
			return err
		}
	}
	for _, p := range append([]string{"/dev/null", "/dev/urandom"}, s.Devices...) {
		if err := bind(p, s.Root+p, unix.MS_NOSUID|unix.MS_NOEXEC); err != nil {
			return err
		}
	}
	run := s.Root + jailEmpty + runDir
	if err := os.MkdirAll(run, 0o755); err != nil {
		return err
	}
	if err := bind(s.Run, run, unix.MS_RDONLY|unix.MS_NOEXEC|rootFlags); err != nil {
		return err
	}
	// QEMU connects to the machine's first devices while it has this root.
	if err := os.Symlink(jailEmpty+runDir, s.Root+runDir); err != nil {
		return err
	}
	proc := s.Root + "/proc"
	if err := os.Mkdir(proc, 0o555); err != nil {
		return err
	}
	if err := unix.Mount("proc", proc, "proc", rootFlags|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Chdir(s.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's files: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|rootFlags, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// bindReadOnly shows path in root, read-only: a file, a directory, or a symbolic link as it is. What does not exist
// is left out.
func bindReadOnly(root, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	target := root + path
	if _, err := os.Lstat(target); err == nil {
		return nil // part of a directory that is there already
	}
	if fi.Mode()&os.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.Symlink(to, target)
	}
	return bind(path, target, unix.MS_RDONLY|rootFlags)
}

// bind shows the file or directory from at to, which it makes, with flags added to those of its mount.
func bind(from, to string, flags uintptr) error {
	fi, err := os.Stat(from)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
		var f *os.File
		if f, err = os.OpenFile(to, os.O_CREATE|os.O_RDONLY, 0o444); err == nil {
			f.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("show %s: %w", from, err)
	}
	// Flags that the mount has are locked in a user namespace: they must stay.
	var st unix.Statfs_t
	if err := unix.Statfs(to, &st); err != nil {
		return fmt.Errorf("show %s: %w", from, err)
	}
	for _, f := range []struct{ have, flag uintptr }{
		{unix.ST_RDONLY, unix.MS_RDONLY}, {unix.ST_NOSUID, unix.MS_NOSUID}, {unix.ST_NODEV, unix.MS_NODEV},
		{unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if uintptr(st.Flags)&f.have != 0 {
			flags |= f.flag
		}
	}
	if err := unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		return fmt.Errorf("show %s read-only: %w", from, err)
	}
	return nil
}

// readOnly returns what QEMU may read: the defaults or the caller's, and the program.
func readOnly(list []string, program string) []string {
	if list == nil {
		list = defaultReadOnly
	}
	out := append([]string(nil), list...)
	for _, p := range out {
		if program == p || strings.HasPrefix(program, strings.TrimSuffix(p, "/")+"/") {
			return out
		}
	}
	return append(out, program)
}
