package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tree makes files of many shapes in dir, and returns the expected list.
func tree(t *testing.T, dir string) string {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	write := func(name string, content []byte) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 1<<20 + 1, 3 << 20} {
		write(fmt.Sprint("size-", n), noise(n))
	}
	write("zeroes", make([]byte, 100000))
	write("zero head", append(make([]byte, 3*4096), noise(5000)...))
	write("zero tail", append(noise(5000), make([]byte, 5*4096)...))
	checker := noise(200 * 4096) // more extents than fit into an inode
	for i := 0; i < 200; i += 2 {
		clear(checker[i*4096 : (i+1)*4096])
	}
	write("holes", checker)
	for i := range 800 { // a hashed directory
		write(fmt.Sprintf("many/%03d-%s", i, strings.Repeat("x", i%40)), noise(rnd.IntN(50)))
	}
	write("a/b/c/d/e/f/deep", noise(10))
	write("ünïcode/☃", noise(10))
	if err := os.Symlink("size-1", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "size-1"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		lines = append(lines, fmt.Sprintf("%s\x00%x", rel, sha256.Sum256(b)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	var b strings.Builder
	for _, l := range lines {
		p, h, _ := strings.Cut(l, "\x00")
		fmt.Fprintf(&b, "%s  %s\n", h, p)
	}
	return b.String()
}

func TestExt4(t *testing.T) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		if mke2fs, err = exec.LookPath("/usr/sbin/mke2fs"); err != nil {
			t.Skip("mke2fs (e2fsprogs) is not installed")
		}
	}
	dir := t.TempDir()
	want := tree(t, filepath.Join(dir, "tree"))
	for _, options := range [][]string{
		{"-b", "4096"},
		{"-b", "1024"},
		{"-b", "4096", "-O", "^64bit"},
	} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "image")
			args := append([]string{"-q", "-t", "ext4", "-d", filepath.Join(dir, "tree")}, options...)
			if out, err := exec.Command(mke2fs, append(args, image, "32M")...).CombinedOutput(); err != nil {
				t.Fatalf("mke2fs: %v\n%s", err, out)
			}
			f, err := os.Open(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := job{workers: 4, passes: 2, out: io.Discard}.hash(f, 32<<20)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want {
				g, w := strings.Split(string(got), "\n"), strings.Split(want, "\n")
				for i := range min(len(g), len(w)) {
					if g[i] != w[i] {
						t.Fatalf("line %d: %q, want %q (%d lines, want %d)", i+1, g[i], w[i], len(g), len(w))
					}
				}
				t.Fatalf("%d lines, want %d", len(g), len(w))
			}
		})
	}
}

// memDisk is an output disk in memory. It refuses what a real one refuses.
type memDisk struct {
	b       []byte
	flushes int
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	if off%512 != 0 || len(p)%512 != 0 || int(off)+len(p) > len(d.b) {
		return 0, fmt.Errorf("write of %d at %d", len(p), off)
	}
	return copy(d.b[off:], p), nil
}

func (d *memDisk) Flush() error { d.flushes++; return nil }

func TestList(t *testing.T) {
	for _, n := range []int{0, 1, listBlock - 1, listBlock, listBlock + 1, 100000} {
		list := bytes.Repeat([]byte("x"), n)
		d := &memDisk{b: make([]byte, 200000/512*512)}
		if err := WriteList(d, int64(len(d.b)), list); err != nil || d.flushes != 2 {
			t.Fatal(n, err, d.flushes)
		}
		got, err := ReadList(bytes.NewReader(d.b), int64(len(d.b)))
		if err != nil || !bytes.Equal(got, list) {
			t.Fatal(n, err)
		}
		if n > 0 {
			d.b[listBlock] ^= 1
			if _, err := ReadList(bytes.NewReader(d.b), int64(len(d.b))); err == nil {
				t.Error("damaged list was read")
			}
		}
		binary.LittleEndian.PutUint64(d.b[8:], 1<<63)
		if _, err := ReadList(bytes.NewReader(d.b), int64(len(d.b))); err == nil {
			t.Error("list of absurd length was read")
		}
	}
	if err := WriteList(&memDisk{b: make([]byte, 8192)}, 8192, make([]byte, 4097)); err == nil {
		t.Error("list was written to too small a disk")
	}
	if _, err := ReadList(bytes.NewReader(make([]byte, 8192)), 8192); err == nil {
		t.Error("list was read from an empty disk")
	}
}

func TestCache(t *testing.T) {
	b := make([]byte, 10*lineSize+77)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	c := newCache(bytes.NewReader(b), int64(len(b)))
	for _, r := range [][2]int{{0, 1}, {lineSize - 1, 2}, {5, 3 * lineSize}, {len(b) - 1, 1}, {0, len(b)}} {
		p := make([]byte, r[1])
		if n, err := c.ReadAt(p, int64(r[0])); n != len(p) || err != nil || !bytes.Equal(p, b[r[0]:r[0]+r[1]]) {
			t.Error(r, n, err)
		}
	}
	if n, err := c.ReadAt(make([]byte, 10), int64(len(b)-3)); n != 3 || err != io.EOF {
		t.Error(n, err)
	}
	big := newCache(zeroDisk{}, 4*maxLines*lineSize)
	for i := range 4 * maxLines {
		if _, err := big.ReadAt(make([]byte, 1), int64(i)*lineSize); err != nil {
			t.Fatal(err)
		}
		if len(big.lines) > maxLines {
			t.Fatalf("%d lines are kept", len(big.lines))
		}
	}
}

type zeroDisk struct{}

func (zeroDisk) ReadAt(p []byte, off int64) (int, error) { return len(p), nil }

// FuzzExtents reads an inode's extents from a damaged tree, and a file through them.
func FuzzExtents(f *testing.F) {
	leaf := make([]byte, 60)
	binary.LittleEndian.PutUint16(leaf, extentMagic)
	leaf[2], leaf[4] = 2, 4
	leaf[12], leaf[16], leaf[20] = 1, 2, 9
	leaf[24], leaf[28], leaf[29], leaf[32] = 5, 1, 0x80, 20
	f.Add(leaf)
	index := slices.Clone(leaf)
	index[6] = 1
	f.Add(index)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 60 {
			return
		}
		disk := bytes.NewReader(slices.Concat(make([]byte, 4096), b, make([]byte, 64<<10)))
		tab := &inodeTable{disk: disk, block: 4096}
		e, err := tab.node(nil, b[:60], maxDepth+1)
		if err != nil {
			return
		}
		for i := 1; i < len(e); i++ {
			if uint64(e[i-1].first)+uint64(e[i-1].blocks) > uint64(e[i].first) {
				return
			}
		}
		c := &content{disk: disk, block: 4096, extents: e, size: 100000}
		for _, r := range [][2]int64{{0, 100000}, {1, 99999}, {4096, 4096}, {99999, 1}} {
			c.ReadAt(make([]byte, r[1]), r[0])
		}
	})
}
