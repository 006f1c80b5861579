package place

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDefault(t *testing.T) {
	clear := func() {
		for _, v := range []string{"GRAIL_STATE_DIR", "GRAIL_RUN_DIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"} {
			t.Setenv(v, "")
		}
	}
	clear()
	t.Setenv("GRAIL_STATE_DIR", "/a")
	if d, err := Default(); err != nil || d.State != "/a" || d.Run != "/a/run" {
		t.Errorf("%+v, %v", d, err)
	}
	t.Setenv("GRAIL_RUN_DIR", "/b")
	if d, err := Default(); err != nil || d.State != "/a" || d.Run != "/b" {
		t.Errorf("%+v, %v", d, err)
	}
	clear()
	d, err := Default()
	if err != nil || !filepath.IsAbs(d.State) || !filepath.IsAbs(d.Run) {
		t.Errorf("%+v, %v", d, err)
	}
	if os.Geteuid() == 0 && (d.State != "/var/lib/grail" || d.Run != "/run/grail") {
		t.Errorf("root: %+v", d)
	}
}

func TestMake(t *testing.T) {
	base := t.TempDir()
	d := Dirs{State: filepath.Join(base, "s"), Run: filepath.Join(base, "r")}
	for range 2 {
		if err := d.Make(); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{d.State, d.Run, d.Sockets(), d.VMs()} {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, st.Mode(), err)
		}
	}
	if err := (Dirs{State: "/proc/nowhere", Run: d.Run}).Make(); err == nil || !strings.Contains(err.Error(), "GRAIL_STATE_DIR") {
		t.Error(err)
	}
}

func TestWithSocket(t *testing.T) {
	base := t.TempDir()
	for _, n := range []int{1, 200} {
		dir := filepath.Join(base, strings.Repeat("d", n))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "s")
		var l net.Listener
		err := WithSocket(path, func(short string) (err error) {
			l, err = net.Listen("unix", short)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
		err = WithSocket(path, func(short string) error {
			c, err := net.Dial("unix", short)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := WithSocket(filepath.Join(base, strings.Repeat("x", 200)), func(string) error { return nil }); err == nil {
		t.Error("a name that fits no address was accepted")
	}
}

func TestProgram(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("GRAIL_LIBEXEC", dir)
	if _, err := Program("grailvm"); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "grailvm"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if p, err := Program("grailvm"); err != nil || p != filepath.Join(dir, "grailvm") {
		t.Error(p, err)
	}
	if err := os.Mkdir(filepath.Join(dir, "graild"), 0o700); err != nil {
		t.Fatal(err)
	}
	if p, err := Program("graild"); err == nil {
		t.Errorf("a directory passed for a program: %s", p)
	}
}
