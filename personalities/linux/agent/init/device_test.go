package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFindSlot(t *testing.T) {
	sys := t.TempDir()
	virtio := filepath.Join(sys, "devices/pci0000:00/0000:00:05.0/0000:02:00.0/virtio3")
	for _, d := range []string{virtio, filepath.Join(sys, "block/vdb"), filepath.Join(sys, "block/vdc"), filepath.Join(sys, "bus/pci/slots/1"), filepath.Join(sys, "bus/pci/slots/2")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for slot, address := range map[string]string{"1": "0000:01:00\n", "2": "0000:02:00\n"} {
		if err := os.WriteFile(filepath.Join(sys, "bus/pci/slots", slot, "address"), []byte(address), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(virtio, filepath.Join(sys, "block/vdb/device")); err != nil {
		t.Fatal(err)
	}
	got, err := findSlot(sys, filepath.Join(sys, "block/vdb"))
	if want := filepath.Join(sys, "bus/pci/slots/2/power"); err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
	if got, err := findSlot(sys, filepath.Join(sys, "block/vdc")); err == nil {
		t.Errorf("a disk that is no PCI device is in slot %s", got)
	}
	if err := os.RemoveAll(filepath.Join(sys, "bus/pci/slots/2")); err != nil {
		t.Fatal(err)
	}
	if got, err := findSlot(sys, filepath.Join(sys, "block/vdb")); err == nil {
		t.Errorf("a disk in no slot is in slot %s", got)
	}
}

func TestMountedAt(t *testing.T) {
	const mounts = "22 1 254:0 / / rw - ext4 /dev/vda rw\n" +
		"23 22 254:17 /sub /srv/data rw,relatime shared:1 - ext4 /dev/vdb1 rw\n" +
		"24 22 0:21 / /proc rw - proc proc rw\nnonsense\n"
	for _, c := range []struct {
		numbers []string
		want    []string
	}{
		{[]string{"254:16", "254:17"}, []string{"mounted at /srv/data"}},
		{[]string{"254:0"}, []string{"mounted at /"}},
		{[]string{"254:1"}, nil},
	} {
		numbers := map[string]bool{}
		for _, n := range c.numbers {
			numbers[n] = true
		}
		if got := mountedAt(mounts, numbers); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.numbers, got, c.want)
		}
	}
}
