package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// mountKernel mounts the kernel's file systems and those in memory.
func mountKernel() error {
	for _, m := range []struct {
		kind, dir, options string
		flags              uintptr
		optional           bool
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, false},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, false},
		{"devtmpfs", "/dev", "mode=755", unix.MS_NOSUID, false},
		{"devpts", "/dev/pts", "mode=620,gid=5,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC, false},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV, false},
		{"tmpfs", "/run", "mode=755", unix.MS_NOSUID | unix.MS_NODEV, false},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV, false},
		{"cgroup2", "/sys/fs/cgroup", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, true},
	} {
		err := os.MkdirAll(m.dir, 0o755)
		if err == nil {
			err = unix.Mount(m.kind, m.dir, m.kind, m.flags, m.options)
		}
		if err != nil && !m.optional && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1",
		"/dev/stderr": "/proc/self/fd/2"} {
		_ = os.Symlink(target, link) // there already, or missed by few
	}
	return nil
}

// diskWait is how long a disk is awaited, unless its description says otherwise.
const diskWait = 10 * time.Second

// device waits for a disk and returns its device file.
func (m *machine) device(d *agent.Disk) (string, error) {
	wait := diskWait
	if d.WaitMs > 0 {
		wait = time.Duration(d.WaitMs) * time.Millisecond
	}
	var path string
	err := await(wait, func() (err error) {
		path, err = findDisk("/sys/block", d)
		return err
	})
	return path, err
}

// findDisk looks for a virtio-blk device below /sys/block.
func findDisk(block string, d *agent.Disk) (string, error) {
	list, err := filepath.Glob(filepath.Join(block, "vd*"))
	if err != nil {
		return "", err
	}
	// vdb stands before vdaa.
	slices.SortFunc(list, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for n, dir := range list {
		if d.Serial == "" && n == d.Index {
			return "/dev/" + filepath.Base(dir), nil
		}
		if d.Serial == "" {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, "serial")); err == nil && strings.TrimSpace(string(b)) == d.Serial {
			return "/dev/" + filepath.Base(dir), nil
		}
	}
	if d.Serial != "" {
		return "", fmt.Errorf("disk with serial number %q: %w", d.Serial, os.ErrNotExist)
	}
	return "", fmt.Errorf("disk %d: %w", d.Index, os.ErrNotExist)
}

// probe returns the kind of a device's file system.
func probe(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 2048)
	if _, err := f.ReadAt(b, 0); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	kind := fileSystem(b)
	if kind == "" {
		return "", fmt.Errorf("%s holds no ext4, erofs or squashfs", path)
	}
	return kind, nil
}

// fileSystem tells a file system by its first 2048 bytes.
func fileSystem(b []byte) string {
	switch {
	case string(b[:4]) == "hsqs":
		return "squashfs"
	case binary.LittleEndian.Uint32(b[1024:]) == 0xe0f5e1e2:
		return "erofs"
	case binary.LittleEndian.Uint16(b[1024+56:]) == 0xef53:
		return "ext4"
	}
	return ""
}

// mount mounts a disk.
func (m *machine) mount(d *agent.Disk, target string) error {
	path, err := m.device(d)
	if err != nil {
		return err
	}
	kind := d.FileSystem
	if kind == "" {
		if kind, err = probe(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	var flags uintptr
	if d.ReadOnly || d.Overlay || kind != "ext4" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount(path, target, kind, flags, d.Options); err != nil {
		return fmt.Errorf("mount %s (%s) at %s: %w", path, kind, target, err)
	}
	return nil
}

func (m *machine) mountDisk(d *agent.Mount) error { return m.mount(&d.Disk, d.Target) }

// Places in the initial file system.
const (
	newRoot   = "/grail/root"
	lowerRoot = "/grail/lower"
	upperRoot = "/grail/upper"
)

// switchRoot makes the root disk the root of every process.
func (m *machine) switchRoot() error {
	d := m.config.Root
	if d == nil {
		return nil
	}
	where := newRoot
	if d.Overlay {
		where = lowerRoot
	}
	if err := m.mount(d, where); err != nil {
		return err
	}
	if d.Overlay {
		if err := overlay(); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp"} {
		to := newRoot + dir
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, to, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	discard("/")
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return os.Chdir("/")
}

// overlay puts memory above the disk.
func overlay() error {
	if err := os.MkdirAll(upperRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", upperRoot, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount memory for the overlay: %w", err)
	}
	for _, dir := range []string{upperRoot + "/data", upperRoot + "/work", newRoot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/data,workdir=%s/work", lowerRoot, upperRoot, upperRoot)
	if err := unix.Mount("overlay", newRoot, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount the overlay: %w", err)
	}
	return nil
}

// discard removes what lies in the initial file system's memory, but nothing on other file systems.
func discard(dir string) {
	var st unix.Stat_t
	if unix.Lstat("/", &st) != nil {
		return
	}
	dev := st.Dev
	var remove func(path string)
	remove = func(path string) {
		if unix.Lstat(path, &st) != nil || st.Dev != dev {
			return
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			list, _ := os.ReadDir(path)
			for _, e := range list {
				remove(filepath.Join(path, e.Name()))
			}
		}
		if path != "/" {
			_ = os.Remove(path) // a folder that holds a mount stays
		}
	}
	remove(dir)
}

// unmountAll unmounts everything that can be, newest first, and makes the root read-only.
func unmountAll() error {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var failed []error
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for _, line := range slices.Backward(lines) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] == "/" || f[2] == "proc" || f[2] == "sysfs" || f[2] == "devtmpfs" {
			continue
		}
		target := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[1])
		if err := unix.Unmount(target, 0); err == unix.EBUSY {
			err = unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
			if err != nil && f[2] != "tmpfs" && f[2] != "devpts" {
				failed = append(failed, fmt.Errorf("unmount %s: %w", target, err))
			}
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		failed = append(failed, fmt.Errorf("make the root read-only: %w", err))
	}
	return errors.Join(failed...)
}
