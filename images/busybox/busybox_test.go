package busybox

import (
	"bytes"
	"context"
	"debug/elf"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTree(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get: busybox comes from a Debian or Ubuntu mirror")
	}
	cache := filepath.Join("..", "..", "build", "busybox")
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		path, err := Fetch(context.Background(), cache, arch)
		if err != nil {
			t.Skipf("no busybox for %s, is there a network? %v", arch, err)
		}
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if f.Machine != machine {
			t.Errorf("%s: %v", arch, f.Machine)
		}
		f.Close()
		var one, two bytes.Buffer
		if err := Tree(path).Encode(&one); err != nil {
			t.Fatal(err)
		}
		if err := Tree(path).Encode(&two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Errorf("%s: not reproducible: %v", arch, err)
		}
		if out, err := exec.Command(path, "--list").Output(); err == nil {
			have := strings.Fields(string(out))
			for _, a := range Applets {
				if !slices.Contains(have, a) {
					t.Errorf("%s: no applet %s", arch, a)
				}
			}
		}
	}
}
