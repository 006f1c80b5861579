package kernel

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Both architectures' kernels come from the distribution. They are kept in the build folder, so that only the first run needs a network.
func TestFetch(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get: kernels come from a Debian or Ubuntu mirror")
	}
	cache := filepath.Join("..", "..", "build", "kernel")
	for arch, magic := range map[string]struct {
		offset int64
		word   uint32
	}{
		"amd64": {0x202, 0x53726448}, // "HdrS", Documentation/x86/boot.rst
		"arm64": {56, 0x644d5241},    // "ARM\x64", Documentation/arm64/booting.rst
	} {
		k, err := Fetch(context.Background(), cache, arch)
		if err != nil {
			if _, ok := os.LookupEnv("CI"); !ok {
				t.Skipf("no kernel for %s, is there a network? %v", arch, err)
			}
			t.Fatal(err)
		}
		f, err := os.Open(k.Image)
		if err != nil {
			t.Fatal(err)
		}
		var b [4]byte
		if _, err := f.ReadAt(b[:], magic.offset); err != nil || binary.LittleEndian.Uint32(b[:]) != magic.word {
			t.Errorf("%s: %s is no kernel of that architecture: % x, %v", arch, k.Image, b, err)
		}
		f.Close()
		if !strings.HasSuffix(k.Version, arch) && !strings.HasSuffix(k.Version, "virtual") || k.Arch != arch {
			t.Errorf("%s: version %s", arch, k.Version)
		}
		order, err := k.Modules("virtio_net", "virtio_blk", "virtio_console")
		if err != nil {
			t.Error(err)
		}
		for _, m := range order {
			if len(m.Data) == 0 {
				t.Errorf("%s: %s is empty", arch, m.Name)
			}
		}
		t.Logf("%s: %s, %d modules", arch, k.Version, len(order))
	}
	if _, err := Fetch(context.Background(), t.TempDir(), "ia64"); err == nil {
		t.Error("ia64: no error")
	}
}
