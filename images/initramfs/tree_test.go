package initramfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
)

// unpack reads an archive as the kernel does: a folder must stand before what lies in it.
func unpack(t *testing.T, in io.Reader) map[string]string {
	t.Helper()
	files := make(map[string]string)
	dirs := map[string]bool{".": true}
	for r := cpio.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Guid != 0 {
			t.Errorf("%s has a time or an owner", h.Name)
		}
		if !dirs[filepath.Dir(h.Name)] {
			t.Errorf("%s stands before its folder", h.Name)
		}
		mode := (h.Mode & (cpio.ModePerm | cpio.ModeSticky | cpio.ModeSetuid)).String()
		switch h.Mode & cpio.ModeType {
		case cpio.TypeDir:
			dirs[h.Name] = true
			files[h.Name+"/"] = mode
		case cpio.TypeSymlink:
			files[h.Name] = "-> " + h.Linkname
		default:
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = mode + " " + string(b)
		}
	}
}

// sample returns a tree with one of everything, its entries added in the given order.
func sample(t *testing.T, host string, order []int) *Tree {
	t.Helper()
	var tr Tree
	adds := []func(){
		func() { tr.Dir("/empty/folder", 0o700) },
		func() { tr.Dir("/tmp", 0o777|os.ModeSticky) },
		func() { tr.Data("/etc/x", []byte("data"), 0o644) },
		func() { tr.Data("/bin/su", []byte("odd"), 0o755|os.ModeSetuid) },
		func() { tr.Symlink("/bin/sh", "busybox") },
		func() { tr.File("/init", filepath.Join(host, "a"), 0o755) },
		func() {
			if err := tr.Folder("/deep/copy", host); err != nil {
				t.Fatal(err)
			}
		},
	}
	for _, n := range order {
		adds[n]()
	}
	return &tr
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "host")
	if err := os.MkdirAll(filepath.Join(host, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"a": 0o755, "sub/b": 0o600} {
		if err := os.WriteFile(filepath.Join(host, name), []byte("content of "+name), mode); err != nil {
			t.Fatal(err)
		}
	}
	tr := sample(t, host, []int{0, 1, 2, 3, 4, 5, 6})
	if err := tr.Folder("/nothing", filepath.Join(dir, "missing")); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "archive")
	if err := tr.Write(out); err != nil {
		t.Fatal(err)
	}
	plain, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, bytes.NewReader(plain))
	for name, want := range map[string]string{
		"empty/": "0755", "empty/folder/": "0700", "tmp/": "01777", "etc/x": "0644 data", "bin/su": "04755 odd", "bin/sh": "-> busybox",
		"init": "0755 content of a", "deep/copy/a": "0755 content of a", "deep/copy/sub/b": "0600 content of sub/b",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, expected %q", name, got[name], want)
		}
	}
	// The order of additions and the times of files do not matter.
	if err := os.Chtimes(filepath.Join(host, "a"), time.Unix(1, 0), time.Unix(2, 0)); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := sample(t, host, []int{6, 5, 4, 3, 2, 1, 0}).Encode(&again); err != nil || !bytes.Equal(again.Bytes(), plain) {
		t.Errorf("not reproducible: %d and %d bytes, %v", again.Len(), len(plain), err)
	}
	packed := filepath.Join(dir, "archive.gz")
	for range 2 {
		if err := tr.Write(packed); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(packed)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(z); err != nil || !bytes.Equal(b, plain) || !z.ModTime.IsZero() {
			t.Errorf("packed: %d bytes, %v", len(b), err)
		}
		f.Close()
	}
}

func TestTreeErrors(t *testing.T) {
	for want, fill := range map[string]func(*Tree){
		"/etc/x twice":      func(tr *Tree) { tr.Data("/etc/x", nil, 0o644); tr.Data("etc//x", nil, 0o644) },
		"/bin is no folder": func(tr *Tree) { tr.Symlink("/bin", "usr/bin"); tr.Data("/bin/sh", nil, 0o755) },
		"no such file":      func(tr *Tree) { tr.File("/a", "/nowhere/at/all", 0o755) },
	} {
		var tr Tree
		fill(&tr)
		dir := t.TempDir()
		if err := tr.Write(filepath.Join(dir, "out")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%q is left behind", left)
		}
	}
}

func TestConcat(t *testing.T) {
	var out bytes.Buffer
	if err := Concat(&out, strings.NewReader("12345"), strings.NewReader("12345678"), strings.NewReader("")); err != nil {
		t.Fatal(err)
	}
	if want := "12345\x00\x00\x0012345678"; out.String() != want {
		t.Errorf("%q, expected %q", out.String(), want)
	}
}
