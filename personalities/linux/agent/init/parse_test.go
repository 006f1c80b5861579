package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

func TestModuleParameters(t *testing.T) {
	got := moduleParameters("console=ttyS0,1.5 virtio_mmio.device=4K@0xd0000000:5 virtio-mmio.device=x nvme.a=1 plain root=a.b=c nvme.flag\n")
	for name, want := range map[string]string{"virtio_mmio": "device=4K@0xd0000000:5 device=x", "nvme": "a=1 flag", "plain": "", "root=a": "", "console=ttyS0,1": ""} {
		if got[name] != want {
			t.Errorf("%s: %q, expected %q", name, got[name], want)
		}
	}
	if n := moduleName("/grail/lib/virtio-rng.ko"); n != "virtio_rng" {
		t.Errorf("%q", n)
	}
}

func TestFileSystem(t *testing.T) {
	b := make([]byte, 2048)
	if got := fileSystem(b); got != "" {
		t.Errorf("zeros are %s", got)
	}
	binary.LittleEndian.PutUint16(b[1080:], 0xef53)
	if got := fileSystem(b); got != "ext4" {
		t.Errorf("%q", got)
	}
	binary.LittleEndian.PutUint32(b[1024:], 0xe0f5e1e2)
	if got := fileSystem(b); got != "erofs" {
		t.Errorf("%q", got)
	}
	copy(b, "hsqs")
	if got := fileSystem(b); got != "squashfs" {
		t.Errorf("%q", got)
	}
}

func TestFindDisk(t *testing.T) {
	dir := t.TempDir()
	for name, serial := range map[string]string{"vda": "", "vdb": "two\n", "vdz": "", "vdaa": "last", "sda": "two"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "serial"), []byte(serial), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for want, d := range map[string]agent.Disk{"/dev/vda": {}, "/dev/vdb": {Serial: "two"}, "/dev/vdz": {Index: 2}, "/dev/vdaa": {Index: 3}} {
		if got, err := findDisk(dir, &d); got != want || err != nil {
			t.Errorf("%+v: %q, %v; expected %s", d, got, err, want)
		}
	}
	for _, d := range []agent.Disk{{Serial: "none"}, {Index: 4}} {
		if _, err := findDisk(dir, &d); err == nil {
			t.Errorf("%+v: no error", d)
		}
	}
}

func TestNames(t *testing.T) {
	n := &agent.Network{Hostname: "box", DNS: []string{"192.0.2.1", "192.0.2.2"}, Search: []string{"grail"},
		Hosts: map[string][]string{"10.0.0.3": {"b"}, "10.0.0.2": {"a", "a.grail"}}}
	if got := hostsFile(n); !strings.HasSuffix(got, "127.0.1.1 box\n10.0.0.2 a a.grail\n10.0.0.3 b\n") {
		t.Errorf("%q", got)
	}
	if got := resolvFile(n); got != "search grail\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n" {
		t.Errorf("%q", got)
	}
}

func TestAwait(t *testing.T) {
	e, err := newEvents()
	if err != nil {
		t.Skipf("no device events: %v", err)
	}
	unix.Close(e.fd)
	begin := time.Now()
	err = await(30*time.Millisecond, func() error { return os.ErrNotExist })
	if err == nil || !strings.Contains(err.Error(), "waited for 30ms") || time.Since(begin) < 30*time.Millisecond {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	if err := await(0, func() error { return nil }); err != nil {
		t.Error(err)
	}
}
