package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// scratchWith returns a scratch disk that claims to hold n bytes of list.
func scratchWith(list string, n uint64) []byte {
	b := make([]byte, 2*listStart)
	copy(b, listMagic)
	binary.LittleEndian.PutUint64(b[8:], n)
	sum := sha256.Sum256([]byte(list))
	copy(b[16:], sum[:])
	copy(b[listStart:], list)
	return b
}

func TestReadList(t *testing.T) {
	const list = "abc  file\n"
	whole := strings.Repeat("x", listStart)
	for _, c := range []struct {
		name string
		disk []byte
		want string // list, or part of the error
		ok   bool
	}{
		{"good", scratchWith(list, uint64(len(list))), list, true},
		{"empty", scratchWith("", 0), "", true},
		{"full", scratchWith(whole, listStart), whole, true},
		{"no list", make([]byte, 2*listStart), "no list", false},
		{"one byte beyond the disk", scratchWith(whole, listStart+1), "claims", false},
		{"length that wraps", scratchWith(list, ^uint64(0)), "claims", false},
		{"short", scratchWith(list, uint64(len(list))-1), "checksum", false},
		{"tiny disk", []byte(listMagic), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readList(bytes.NewReader(c.disk), int64(len(c.disk)))
			switch {
			case c.ok && (err != nil || string(got) != c.want):
				t.Errorf("%q, %v", got, err)
			case !c.ok && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func FuzzReadList(f *testing.F) {
	f.Add(scratchWith("abc  file\n", 10))
	f.Add(scratchWith("", ^uint64(0)))
	f.Fuzz(func(t *testing.T, disk []byte) {
		_, _ = readList(bytes.NewReader(disk), int64(len(disk)))
	})
}

func TestDiffer(t *testing.T) {
	for _, c := range []struct {
		got, want string
		n         int
		first     string
	}{
		{"a\nb\n", "a\nb\n", 0, ""},
		{"a\nx\n", "a\nb\n", 1, `line 2 is "x", not "b"`},
		{"a\n", "a\nb\n", 1, `line 2 is "", not "b"`},
		{"", "a", 1, `line 1 is "", not "a"`},
	} {
		if n, first := differ(c.got, c.want); n != c.n || first != c.first {
			t.Errorf("%q, %q: %d, %s", c.got, c.want, n, first)
		}
	}
}

func TestSums(t *testing.T) {
	if _, err := exec.LookPath("sha256sum"); err != nil {
		t.Skip("SKIPPED: no sha256sum:", err)
	}
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"-dash", "a b", "ü"} {
		files = append(files, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := &demo{src: dir}
	got, err := d.sums(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(got), "\n"), "\n")
	if len(lines) != len(files) {
		t.Fatalf("%q", got)
	}
	for i, l := range lines {
		if sum, name, _ := strings.Cut(l, "  "); name != files[i] || len(sum) != 64 {
			t.Errorf("%q", l)
		}
	}
}

func TestProgress(t *testing.T) {
	m := progress.FindStringSubmatch("fshash: pass 2 of 3: 5000 of 11478 files, 12 MiB")
	if len(m) != 4 || m[1] != "2" || m[2] != "5000" || m[3] != "11478" {
		t.Errorf("%q", m)
	}
	for _, l := range []string{"fshash: pass 2 of 3: done, 11478 files", "fshash: mounted, 11478 regular files, 1.00 s"} {
		if progress.MatchString(l) {
			t.Errorf("%q is no progress", l)
		}
	}
}
