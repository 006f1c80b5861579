package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func needTools(t testing.TB) {
	t.Helper()
	for _, p := range []string{"mke2fs", "debugfs", "e2fsck"} {
		if _, err := find(p, "e2fsprogs"); err != nil {
			t.Skip(err)
		}
	}
}

func makeTar(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := []byte(nil)
		if h.Typeflag == tar.TypeReg {
			body = []byte("content of " + h.Name)
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var when = time.Unix(1700000000, 0)

// sample holds one of everything, and names that a careless script would trip over.
var sample = []tar.Header{
	{Name: "./", Typeflag: tar.TypeDir, ModTime: when},
	{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, ModTime: when},
	{Name: "bin/ping", Typeflag: tar.TypeReg, ModTime: when, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "x\x00y"}},
	{Name: "bin/su2", Typeflag: tar.TypeLink, Linkname: "bin/su"},
	{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "/bin/a b", ModTime: when},
	{Name: "home/me", Typeflag: tar.TypeDir, Uid: 100000, Gid: 70000, Mode: 0o700, ModTime: when},
	{Name: `home/me/a "quoted" $name`, Typeflag: tar.TypeReg, Uid: 100000, Gid: 70000, ModTime: when},
	{Name: "home/me/-rf #", Typeflag: tar.TypeReg, ModTime: when},
	{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666, ModTime: when},
	{Name: "run/fifo", Typeflag: tar.TypeFifo, ModTime: when},
	{Name: "../../escape", Typeflag: tar.TypeReg, ModTime: when},
}

func debugfsRun(t *testing.T, disk, command string) string {
	t.Helper()
	path, err := find("debugfs", "e2fsprogs")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "-R", command, disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func check(t *testing.T, i *Image) {
	t.Helper()
	e2fsck, err := find("e2fsck", "e2fsprogs")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(e2fsck, "-fn", i.Disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

func TestTarball(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	plain := makeTar(t, sample...)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var digests []string
	for n, b := range [][]byte{plain, plain, packed.Bytes()} {
		// A store of its own each: nothing of the host's may get into the disk.
		s, err := OpenStore(filepath.Join(dir, strings.Repeat("s", n+1)))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "archive")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		i, err := Build(context.Background(), s, Options{Name: "one", Tarball: path, SizeMiB: 24})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, i.Digest)
		if n > 0 {
			continue
		}
		check(t, i)
		for command, want := range map[string]string{
			"stat /bin/su": "Mode:  04755", "stat /bin/su2": "Links: 2", "stat /bin/sh": `"/bin/a b"`,
			"stat /home/me": "User: 100000   Group: 70000", `cat "/home/me/a ""quoted"" $name"`: `content of home/me/a "quoted" $name`,
			`cat "/home/me/-rf #"`: "content of home/me/-rf #", "stat /dev/null": "Device major/minor number: 01:03",
			"stat /run/fifo": "Type: FIFO", "cat /escape": "content of ../../escape", "stat /home": "User:     0", "ea_list /bin/ping": "user.note (3)",
			"stat /": "atime: 0x", "stat /bin/ping": "mtime: 0x6553f100",
		} {
			if got := debugfsRun(t, i.Disk, command); !strings.Contains(got, want) {
				t.Errorf("%s: %q is not in %q", command, want, got)
			}
		}
		if i.SizeBytes != 24*mib || i.UsedBytes >= i.SizeBytes || i.Files != 15 {
			t.Errorf("%+v", i)
		}
	}
	if digests[0] != digests[1] || digests[0] != digests[2] {
		t.Errorf("not reproducible: %q", digests)
	}
}

func TestFolder(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := errors.Join(os.MkdirAll(filepath.Join(from, "sub"), 0o755), os.WriteFile(filepath.Join(from, "sub/file"), []byte("text"), 0o640),
		os.Link(filepath.Join(from, "sub/file"), filepath.Join(from, "other")), os.Symlink("sub/file", filepath.Join(from, "link"))); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	one, err := Build(context.Background(), s, Options{Name: "folder", Folder: from})
	if err != nil {
		t.Fatal(err)
	}
	check(t, one)
	if got := debugfsRun(t, one.Disk, "cat /sub/file"); got != "text" {
		t.Errorf("%q", got)
	}
	two, err := Build(context.Background(), s, Options{Name: "again", Folder: from, Arch: "arm64"})
	if err != nil || two.Digest != one.Digest {
		t.Errorf("%v, or not reproducible", err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Name != "again" || list[0].Arch != "arm64" || list[1].Digest != one.Digest {
		t.Errorf("%v, %v", list, err)
	}
	if i, err := s.Inspect("folder"); err != nil || i.Digest != one.Digest || i.Disk != one.Disk {
		t.Errorf("%+v, %v", i, err)
	}
	if err := s.Remove("folder"); err != nil {
		t.Error(err)
	}
	for _, err := range []error{s.Remove("folder"), func() error { _, err := s.Inspect("folder"); return err }()} {
		if !errors.Is(err, ErrNoImage) {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "store")); len(left) != 1 {
		t.Errorf("%v is left", left)
	}
}

// container returns an image of two layers, the second of which removes a file of the first.
func container(t *testing.T) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, b := range [][]byte{
		makeTar(t, tar.Header{Name: "a", Typeflag: tar.TypeReg}, tar.Header{Name: "b", Typeflag: tar.TypeReg}),
		makeTar(t, tar.Header{Name: ".wh.a", Typeflag: tar.TypeReg}, tar.Header{Name: "c", Typeflag: tar.TypeReg}),
	} {
		path := filepath.Join(t.TempDir(), "layer")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := tarball.LayerFromFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture = "linux", "amd64"
	f.Config = v1.Config{Entrypoint: []string{"/c"}, Cmd: []string{"arg"}, Env: []string{"X=1"}, WorkingDir: "/w", User: "9"}
	if img, err = mutate.ConfigFile(img, f); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestContainer(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	img := container(t)
	oci := filepath.Join(dir, "oci")
	l, err := layout.Write(oci, empty.Index)
	if err == nil {
		err = l.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "saved.tar")
	tag, err := name.NewTag("example/image:latest")
	if err == nil {
		err = tarball.WriteToFile(archive, tag, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	one, err := Build(context.Background(), s, Options{Name: "oci", Layout: oci})
	if err != nil {
		t.Fatal(err)
	}
	two, err := Build(context.Background(), s, Options{Name: "docker", Archive: archive})
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest != two.Digest || strings.Join(one.Argv, " ") != "/c arg" || two.Env[0] != "X=1" || one.Dir != "/w" || two.User != "9" {
		t.Errorf("%+v\n%+v", one, two)
	}
	check(t, one)
	if got := debugfsRun(t, one.Disk, "ls -p /"); strings.Contains(got, "/a/") || !strings.Contains(got, "/b/") || !strings.Contains(got, "/c/") {
		t.Errorf("%s", got)
	}
	if _, err := Build(context.Background(), s, Options{Name: "arm", Layout: oci, Arch: "arm64"}); err == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Error(err)
	}
	if _, err := Build(context.Background(), s, Options{Name: "arm", Archive: archive, Arch: "arm64"}); err == nil {
		t.Error("an image of another architecture: no error")
	}
}

func TestErrors(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	s, err := OpenStore(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(b []byte) string {
		f, err := os.CreateTemp(dir, "in-")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		f.Close()
		return f.Name()
	}
	for want, o := range map[string]Options{
		"image's name": {Name: "../x", Folder: dir}, "0 sources": {Name: "x"}, "2 sources": {Name: "x", Folder: dir, Suite: "bookworm"},
		"unknown architecture": {Name: "x", Folder: dir, Arch: "ia64"}, "no suite's name": {Name: "x", Suite: "--hook"},
		"no package's name": {Name: "x", Suite: "bookworm", Packages: []string{"-x"}}, "no OCI image layout": {Name: "x", Layout: dir},
		"is no folder":             {Name: "x", Folder: file(nil)},
		"read the archive":         {Name: "x", Tarball: file(bytes.Repeat([]byte("noise"), 500))},
		"which is no folder":       {Name: "x", Tarball: file(makeTar(t, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}))},
		"does not hold":            {Name: "x", Tarball: file(makeTar(t, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}))},
		"disk cannot have":         {Name: "x", Tarball: file(makeTar(t, tar.Header{Name: "a\nrm b", Typeflag: tar.TypeReg}))},
		"a folder and something":   {Name: "x", Tarball: file(makeTar(t, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}, tar.Header{Name: "a", Typeflag: tar.TypeReg}))},
		"which was replaced":       {Name: "x", Tarball: file(makeTar(t, tar.Header{Name: "a", Typeflag: tar.TypeReg}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"}, tar.Header{Name: "c", Typeflag: tar.TypeReg}, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "c"}))},
		"larger than the disk: 40": {Name: "x", Folder: big(t, 39), SizeMiB: 40},
		"larger than the disk":     {Name: "x", Folder: big(t, 41), SizeMiB: 40},
	} {
		_, err := Build(context.Background(), s, o)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
		if strings.HasPrefix(want, "larger") && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v is not ErrTooLarge", err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "store")); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// big returns a folder with a file of so many MiB.
func big(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("x"), n*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// FuzzTar takes anything for an archive: it neither panics nor makes a file outside of its folder, and what it accepts has sane names.
func FuzzTar(f *testing.F) {
	f.Add(makeTar(f, sample...))
	f.Add(makeTar(f, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newContent(t.TempDir(), 1<<20)
		if c.addTar(bytes.NewReader(b)) != nil || c.settle() != nil {
			return
		}
		for p := range c.nodes {
			if p != filepath.Clean(p) || p[0] != '/' || strings.Contains(quote(p), "\n") {
				t.Errorf("path %q", p)
			}
		}
	})
}
