package busybox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/apt"
	"github.com/grailos/grail/images/initramfs"
)

// packageName is the distribution's.
const packageName = "busybox-static"

// Fetch returns the path of a static busybox for arch ("amd64" or "arm64") in cacheDir, which it takes from the distribution's package the first
// time. Several processes may share cacheDir.
func Fetch(ctx context.Context, cacheDir, arch string) (string, error) {
	dir := filepath.Join(cacheDir, arch)
	if path, err := find(dir); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	source, err := apt.NewSource(ctx, filepath.Join(cacheDir, arch+".apt"), arch)
	if err != nil {
		return "", err
	}
	fresh, err := os.MkdirTemp(cacheDir, ".busybox-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	unpacked := filepath.Join(fresh, "files")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		return "", err
	}
	if err := source.Unpack(ctx, unpacked, packageName); err != nil {
		return "", err
	}
	if _, err := find(unpacked); err != nil {
		return "", err
	}
	// Another process may have been faster; either result serves.
	if err := os.Rename(unpacked, dir); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) {
		return "", err
	}
	return find(dir)
}

// find returns where a package has its program: that differs between releases.
func find(dir string) (string, error) {
	for _, p := range []string{"bin/busybox", "usr/bin/busybox"} {
		path := filepath.Join(dir, p)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("busybox: there is none in %s", dir)
}

// Tree returns the system with the busybox at path: programs in /bin, and the few files that they look for.
func Tree(path string) *initramfs.Tree {
	t := &initramfs.Tree{}
	for dir, mode := range map[string]os.FileMode{"/dev": 0o755, "/proc": 0o555, "/sys": 0o555, "/run": 0o755, "/root": 0o700, "/etc": 0o755, "/mnt": 0o755,
		"/var/log": 0o755, "/home": 0o755, "/usr": 0o755, "/tmp": 0o777 | os.ModeSticky} {
		t.Dir(dir, mode)
	}
	t.File("/bin/busybox", path, 0o755)
	for _, name := range Applets {
		t.Symlink("/bin/"+name, "busybox")
	}
	for link, target := range map[string]string{"/sbin": "bin", "/usr/bin": "../bin", "/usr/sbin": "../bin", "/var/run": "../run", "/etc/mtab": "/proc/self/mounts"} {
		t.Symlink(link, target)
	}
	for path, text := range map[string]string{
		"/etc/passwd":        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":         "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n",
		"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/hostname":      "grail\n",
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"/etc/profile":       "export PATH=/bin\nPS1='\\h:\\w\\$ '\n",
		"/etc/os-release":    "ID=grail\nNAME=Grail\nPRETTY_NAME=\"Grail's default image\"\n",
		"/etc/shells":        "/bin/sh\n",
	} {
		t.Data(path, []byte(text), 0o644)
	}
	return t
}
