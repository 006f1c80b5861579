package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ownImage builds an image named own, with busybox, and returns its disk's path.
func (r *rig) ownImage(size string) string {
	r.t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		r.t.Skip("SKIPPED: no busybox here (package busybox-static)")
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		r.t.Fatal(err)
	}
	root := r.t.TempDir()
	for path, b := range map[string][]byte{"bin/busybox": content, "etc/motd": []byte("hello from the image\n")} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), b, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, a := range []string{"sh", "cat", "touch", "ls", "sync", "id"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			r.t.Fatal(err)
		}
	}
	return strings.TrimSpace(r.ctl("image", "build", "own", "--dir", root, "--size", size))
}

// TestLinuxImage runs VMs from an image: with changes in memory, which share a driver, and with a copy of their own. Nothing of it is left when
// the VMs are gone.
func TestLinuxImage(t *testing.T) {
	r := linuxRig(t)
	disk := r.ownImage("64M")
	out, code := r.runWithin(linuxLimit, nil, "run", "--rm", "--personality", "linux", "--image", "own", "--", "sh", "-c", "echo more >>/etc/motd; cat /etc/motd")
	if code != 0 || out != "hello from the image\nmore\n" {
		t.Errorf("exit code %d, %q", code, out)
	}
	if out := r.ctl("driver", "ls"); strings.Contains(out, "img-") {
		t.Errorf("a driver is left without its VM:\n%s", out)
	}
	if out, code := r.run(nil, "create", "--personality", "linux", "--image", "none"); code != 125 || !strings.Contains(out, "no image none") {
		t.Errorf("no image: exit code %d, %q", code, out)
	}
	if out, code := r.run(nil, "create", "--personality", "linux", "--image", "own", "--root", "a/b"); code != 125 || !strings.Contains(out, "exclude each other") {
		t.Errorf("image and root: exit code %d, %q", code, out)
	}
	r.ctl("create", "--personality", "linux", "--name", "reader", "--image", "own")
	r.ctl("create", "--personality", "linux", "--name", "other", "--image", "own")
	r.ctl("create", "--personality", "linux", "--name", "tux", "--image", "own:rw")
	if out := r.ctl("driver", "ls"); strings.Count(out, "img-") != 2 || strings.Count(out, "root-") != 2 { // each in its name and its path
		t.Errorf("expected one driver for the two that read, and one for the one that writes:\n%s", out)
	}
	r.ctl("image", "rm", "own") // the VMs keep it
	r.killDaemon()
	x := tux{r, "tux"}
	r.ctl("start", "tux")
	x.must("echo kept >/made; sync")
	r.ctlWithin(linuxLimit, "stop", "-t", "1m", "tux")
	r.ctl("start", "tux")
	if out := x.must("cat /etc/motd /made"); out != "hello from the image\nkept\n" {
		t.Errorf("for writing: %q", out)
	}
	r.ctlWithin(linuxLimit, "rm", "-f", "tux", "reader", "other")
	if out := r.ctl("driver", "ls"); strings.Contains(out, "img-") || strings.Contains(out, "root-") {
		t.Errorf("drivers are left without their VMs:\n%s", out)
	}
	if left, err := os.ReadDir(filepath.Join(r.dirs.State, "roots")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := os.Stat(disk); err == nil {
		t.Errorf("the image is still there")
	}
}
