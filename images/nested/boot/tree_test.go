package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"

	"github.com/grailos/grail/images/nested/plan"
)

// unpack reads an archive as the kernel does: a folder must stand before what lies in it.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := make(map[string]string)
	dirs := map[string]bool{".": true}
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if !dirs[filepath.Dir(h.Name)] {
			t.Errorf("%s stands before its folder", h.Name)
		}
		if h.Mode.IsDir() {
			dirs[h.Name] = true
			files[h.Name+"/"] = h.Mode.Perm().String()
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = h.Mode.Perm().String() + " " + string(b)
	}
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
	var tr tree
	tr.dir("/empty/folder")
	tr.data("/etc/x", []byte("data"), 0o644)
	tr.file("/init", filepath.Join(host, "a"), 0o755)
	if err := tr.folder("/deep/copy", host); err != nil {
		t.Fatal(err)
	}
	if err := tr.folder("/nothing", filepath.Join(dir, "missing")); err != nil {
		t.Fatal(err)
	}
	p := &plan.Plan{Modules: []string{"/m.ko"}, Steps: []plan.Step{{Name: "one"}}}
	out := filepath.Join(dir, "archive")
	if err := tr.write(out, p); err != nil {
		t.Fatal(err)
	}
	got := unpack(t, out)
	for name, want := range map[string]string{
		"empty/": "0755", "empty/folder/": "0755", "etc/x": "0644 data", "init": "0755 content of a",
		"deep/copy/a": "0755 content of a", "deep/copy/sub/b": "0600 content of sub/b",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, expected %q", name, got[name], want)
		}
	}
	var back plan.Plan
	if err := json.Unmarshal([]byte(strings.TrimPrefix(got["plan.json"], "0644 ")), &back); err != nil || len(back.Steps) != 1 || back.Steps[0].Name != "one" {
		t.Errorf("plan: %v, %+v", err, back)
	}
	tr.data("/etc/x", nil, 0o644)
	if err := tr.write(out, p); err == nil || !strings.Contains(err.Error(), "/etc/x twice") {
		t.Errorf("a file twice: %v", err)
	}
}
