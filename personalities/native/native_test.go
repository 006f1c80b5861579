package native

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// build compiles a trivial Go program.
func build(t *testing.T, dir, name string, env ...string) string {
	t.Helper()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() { println(1) }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-o", out, src)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off"), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	return out
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	good := build(t, dir, "good")
	image, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(off int, b ...byte) []byte {
		c := slices.Clone(image)
		copy(c[off:], b)
		return c
	}
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	noSections := edit(40, make([]byte, 8)...)
	copy(noSections[58:], make([]byte, 6))
	phoff := int(le.Uint64(image[32:]))
	for _, c := range []struct {
		path, want string
	}{
		{good, ""},
		{dir, "it is a directory"},
		{write("empty", nil), "it is empty"},
		{write("script", []byte("#!/bin/sh\n")), "it is a script"},
		{write("text", []byte("hello, world, this is some text\n")), "it is no ELF file"},
		{write("exe", append([]byte("MZ"), make([]byte, 100)...)), "Windows program"},
		{write("short", image[:10]), "it is cut off"},
		{write("header", image[:40]), "damaged"},
		{write("cut sections", image[:len(image)/3]), "damaged"},
		{write("cut", noSections[:len(image)/3]), "reaches beyond its end"},
		{write("class", edit(4, 1)), "32-bit program"},
		{write("endian", edit(5, 2)), "big-endian"},
		{write("machine", edit(18, 243, 0)), "program for RISC-V"},
		{write("object", edit(16, 1, 0)), "object file"},
		{write("core", edit(16, 4, 0)), "core dump"},
		{write("interp", edit(phoff, 3, 0, 0, 0)), "dynamically linked"},
		{write("noload", edit(56, 0, 0)), "nothing to load"},
		{write("noentry", edit(24, make([]byte, 8)...)), "no entry point"},
		{build(t, dir, "arm64", "GOARCH=arm64"), "program for arm64"},
		{build(t, dir, "386", "GOARCH=386"), "32-bit program"},
	} {
		f, err := CheckPath(c.path)
		if err == nil {
			f.Close()
		}
		switch {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", filepath.Base(c.path), err, c.want)
		case err != nil && (!errors.Is(err, ErrProgram) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "expected")):
			t.Errorf("%s: %q is no one-line answer", filepath.Base(c.path), err)
		}
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Check(f); !errors.Is(err, ErrProgram) {
		t.Error(err)
	}
	if _, err := CheckPath(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if f, err := CheckPath("/bin/sh"); err == nil {
		f.Close()
		t.Log("/bin/sh is static here")
	} else if !strings.Contains(err.Error(), "dynamically linked") {
		t.Error(err)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	if b, err := os.ReadFile("/bin/true"); err == nil {
		f.Add(b[:min(len(b), 8192)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if g, err := CheckPath(p); err == nil {
			g.Close()
		}
	})
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	for _, p := range []string{"b", "a/z", "a/b/c"} {
		p = filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(filepath.Base(p)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("n", 200) + "ü"
	if err := os.WriteFile(filepath.Join(dir, long), make([]byte, 3<<20), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"out": "/etc/passwd", "loop": "loop", "in": "a/z"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	pack := func() ([]byte, Packed) {
		var b bytes.Buffer
		calls := 0
		p, err := Pack(context.Background(), dir, &b, func(files int, bytes int64) { calls++ })
		if err != nil || calls == 0 {
			t.Fatal(err, calls)
		}
		return b.Bytes(), p
	}
	b, p := pack()
	if want := (Packed{Files: 4, Links: 3, Dirs: 2, Skipped: 1, Bytes: 3 + 3<<20}); p != want {
		t.Errorf("%+v, want %+v", p, want)
	}
	if again, _ := pack(); !bytes.Equal(b, again) {
		t.Error("packing again gave another archive")
	}
	var got []string
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%c %s %o %d %s", h.Typeflag, h.Name, h.Mode, len(content), h.Linkname))
	}
	want := []string{
		"5 a/ 755 0 ", "5 a/b/ 755 0 ", "0 a/b/c 640 1 ", "0 a/z 640 1 ", "0 b 640 1 ",
		"2 in 777 0 a/z", "2 loop 777 0 loop", "0 " + long + " 755 3145728 ", "2 out 777 0 /etc/passwd",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestPackErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(context.Background(), file, io.Discard, nil); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
	if _, err := Pack(context.Background(), file+"x", io.Discard, nil); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Pack(ctx, filepath.Dir(file), io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	full := errors.New("full")
	if _, err := Pack(context.Background(), filepath.Dir(file), failing{full}, nil); !errors.Is(err, full) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestEnv(t *testing.T) {
	if got := Env(); !slices.Equal(got, defaultEnv) {
		t.Error(got)
	}
	got := Env("A=1", "HOME=/x", "A=2", "B=")
	want := []string{"PATH=/bin", "HOME=/x", "TMPDIR=/tmp", "LANG=C.UTF-8", "A=2", "B="}
	if !slices.Equal(got, want) {
		t.Error(got)
	}
}
