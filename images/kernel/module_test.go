package kernel

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// object returns an ELF object file with a section .modinfo of the given content.
func object(info string) []byte {
	const header, section = 64, 64
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := make([]byte, header, header+len(info)+len(names)+3*section)
	b = append(b, info...)
	b = append(b, names...)
	sections := len(b)
	le := binary.LittleEndian
	b = append(b, make([]byte, 3*section)...)
	put := func(n int, name, typ uint32, offset, size int) {
		s := b[sections+n*section:]
		le.PutUint32(s[0:], name)
		le.PutUint32(s[4:], typ)
		le.PutUint64(s[24:], uint64(offset))
		le.PutUint64(s[32:], uint64(size))
		le.PutUint64(s[48:], 1)
	}
	put(1, 1, 1, header, len(info))
	put(2, 10, 3, header+len(info), len(names))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(sections))
	le.PutUint16(b[52:], header)
	le.PutUint16(b[58:], section)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	return b
}

func TestModuleNeeds(t *testing.T) {
	for _, c := range []struct {
		info string
		want []string
	}{
		{"license=GPL\x00depends=irqbypass\x00name=kvm\x00", []string{"irqbypass"}},
		{"depends=kvm,ccp\x00", []string{"kvm", "ccp"}},
		{"depends=\x00name=irqbypass\x00", nil},
		{"name=x\x00", nil},
		{"", nil},
	} {
		got, err := moduleNeeds(object(c.info))
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v; expected %q", c.info, got, err, c.want)
		}
	}
	for _, bad := range [][]byte{nil, []byte("MZ"), object("")[:70]} {
		if _, err := moduleNeeds(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	pack := map[string]func([]byte) []byte{
		".ko": func(b []byte) []byte { return b },
		".ko.xz": func(b []byte) []byte {
			var out bytes.Buffer
			w, err := xz.NewWriter(&out)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return out.Bytes()
		},
		".ko.zst": func(b []byte) []byte {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			return w.EncodeAll(b, nil)
		},
	}
	for ext, f := range pack {
		sub := filepath.Join(dir, ext, "lib/modules/6.1/kernel")
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, ext, "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, info := range map[string]string{
			"kvm-amd": "depends=kvm,builtin\x00", "kvm": "depends=irqbypass,loop\x00", "irqbypass": "depends=\x00",
			"loop": "depends=kvm\x00", "other": "",
		} {
			if err := os.WriteFile(filepath.Join(sub, name+ext), f(object(info)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, ext, "lib/modules/6.1/modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ext, "boot/vmlinuz-6.1"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		k, err := Open(filepath.Join(dir, ext), "amd64")
		if err != nil {
			t.Fatal(err)
		}
		if k.Version != "6.1" {
			t.Errorf("version %q", k.Version)
		}
		order, err := k.Modules("kvm-amd", "ext4")
		var got []string
		for _, m := range order {
			got = append(got, m.Name)
			if !bytes.HasPrefix(m.Data, []byte("\x7fELF")) {
				t.Errorf("%s: %s is not unpacked", ext, m.Name)
			}
		}
		want := "irqbypass loop kvm kvm_amd"
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %q, %v; expected %s", ext, got, err, want)
		}
		if !k.Has("kvm-amd") || !k.Has("ext4") || k.Has("nothing") {
			t.Errorf("%s: Has is wrong", ext)
		}
		if _, err := k.Modules("kvm-intel"); err == nil {
			t.Error("a module that is not there: no error")
		}
	}
	if _, err := Open(t.TempDir(), "amd64"); err == nil {
		t.Error("an empty folder is a kernel")
	}
}
