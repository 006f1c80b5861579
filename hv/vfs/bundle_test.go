package vfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// member is one entry of a test archive.
type member struct {
	name, link string
	body       string
	typ        byte
}

func archive(t testing.TB, members []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Linkname: m.link, Size: int64(len(m.body)), Typeflag: m.typ, Mode: 0o644}
		if m.typ == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hostFile(t testing.TB, content []byte) int {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return int(f.Fd())
}

func withFiles(t testing.TB, tarball []byte) Config {
	cfg := bare()
	cfg.Files = hostFile(t, tarball)
	return cfg
}

func (g *guest) readFile(path string) (string, unix.Errno) {
	g.tb.Helper()
	fd, e := g.call(unix.SYS_OPENAT, cwdArg, g.str(path), unix.O_RDONLY, 0)
	if e != 0 {
		return "", e
	}
	defer g.ok(unix.SYS_CLOSE, fd)
	p := g.alloc(1 << 16)
	n, e := g.call(unix.SYS_READ, fd, p, 1<<16)
	return string(g.view(p, int(n))), e
}

// ordinary is an archive with everything that a path can meet.
var ordinary = []member{
	{name: "etc/", typ: tar.TypeDir},
	{name: "etc/hosts", body: "hosts"},
	{name: "./usr/share/a", body: "A"},
	{name: "/abs", body: "absolute"},
	{name: "link", link: "etc/hosts", typ: tar.TypeSymlink},
	{name: "abslink", link: "/etc/hosts", typ: tar.TypeSymlink},
	{name: "dirlink", link: "usr/share", typ: tar.TypeSymlink},
	{name: "usr/share/up", link: "../..", typ: tar.TypeSymlink},
	{name: "out", link: "../../../../etc/hosts", typ: tar.TypeSymlink},
	{name: "loop", link: "loop2", typ: tar.TypeSymlink},
	{name: "loop2", link: "loop", typ: tar.TypeSymlink},
	{name: "grow", link: "grow/grow", typ: tar.TypeSymlink},
	{name: "dangling", link: "nowhere", typ: tar.TypeSymlink},
	{name: "totmp", link: "tmp/x", typ: tar.TypeSymlink},
	{name: "hard", link: "etc/hosts", typ: tar.TypeLink},
	{name: "empty", body: ""},
	{name: "sh", body: "#!", typ: 0},
}

func TestPaths(t *testing.T) {
	for _, tc := range []struct {
		path string
		want string
		e    unix.Errno
	}{
		{"/etc/hosts", "hosts", 0},
		{"etc/hosts", "hosts", 0},
		{"//etc///hosts", "hosts", 0},
		{"/../../etc/./hosts", "hosts", 0},
		{"/etc/../etc/hosts", "hosts", 0},
		{"/usr/share/a", "A", 0},
		{"/abs", "absolute", 0},
		{"/link", "hosts", 0},
		{"/abslink", "hosts", 0},
		{"/dirlink/a", "A", 0},
		{"/dirlink/up/etc/hosts", "hosts", 0},
		{"/dirlink/../share/a", "A", 0},
		{"/out", "hosts", 0},
		{"/hard", "hosts", 0},
		{"/empty", "", 0},
		{"/loop", "", unix.ELOOP},
		{"/loop/x", "", unix.ELOOP},
		{"/grow", "", unix.ELOOP},
		{"/dangling", "", unix.ENOENT},
		{"/totmp", "", unix.ENOENT},
		{"/etc/hosts/", "", unix.ENOTDIR},
		{"/etc/hosts/x", "", unix.ENOTDIR},
		{"/etc/hosts/..", "", unix.ENOTDIR},
		{"/link/", "", unix.ENOTDIR},
		{"/none", "", unix.ENOENT},
		{"/none/..", "", unix.ENOENT},
		{"", "", unix.ENOENT},
		{"/", "", unix.EISDIR},
		{".", "", unix.EISDIR},
		{"/dirlink/", "", unix.EISDIR},
		{"/" + strings.Repeat("x", 256), "", unix.ENAMETOOLONG},
		{"/" + strings.Repeat("x", 255), "", unix.ENOENT},
		{strings.Repeat("/", 4094) + "x", "", unix.ENOENT},
		{strings.Repeat("/", 4095) + "x", "", unix.ENAMETOOLONG},
		{"/dev/null", "", 0},
		{"/dev/../etc/hosts", "hosts", 0},
		{"/proc/self/fd/99", "", unix.ENOENT},
		{"/proc/self/fd/x", "", unix.ENOENT},
		{"/proc/self/fd/00", "", unix.ENOENT},
		{"/proc/self/fd/-1", "", unix.ENOENT},
		{"/proc/self/maps", "", unix.ENOENT},
		{"/proc/1/maps", "", unix.ENOENT},
		{"/dev/stdin", "", 0},
		{"/dev/mem", "", unix.ENOENT},
		{"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "", unix.ENOENT},
	} {
		g := newGuest(t, withFiles(t, archive(t, ordinary)), true)
		got, e := g.readFile(tc.path)
		if got != tc.want || e != tc.e {
			t.Errorf("%.40q: %q, %v; want %q, %v", tc.path, got, e, tc.want, tc.e)
		}
	}
}

func TestBundleIsReadOnly(t *testing.T) {
	g := newGuest(t, withFiles(t, archive(t, ordinary)), true)
	p := g.str("/etc/hosts")
	for _, flags := range []uint64{unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_TRUNC, unix.O_WRONLY | unix.O_CREAT} {
		g.fails(unix.EROFS, unix.SYS_OPEN, p, flags, 0)
	}
	g.fails(unix.EROFS, unix.SYS_OPEN, g.str("/etc/new"), unix.O_CREAT|unix.O_RDWR, 0)
	g.fails(unix.EROFS, unix.SYS_UNLINK, p)
	g.fails(unix.EROFS, unix.SYS_RMDIR, g.str("/etc"))
	g.fails(unix.EROFS, unix.SYS_MKDIR, g.str("/etc/d"), 0o755)
	g.fails(unix.EEXIST, unix.SYS_MKDIR, g.str("/etc"), 0o755)
	g.fails(unix.EROFS, unix.SYS_TRUNCATE, p, 0)
	g.fails(unix.EROFS, unix.SYS_CHMOD, p, 0)
	g.fails(unix.EROFS, unix.SYS_RENAME, p, g.str("/etc/x"))
	g.fails(unix.EXDEV, unix.SYS_RENAME, p, g.str("/tmp/x"))
	g.fails(unix.EXDEV, unix.SYS_LINK, p, g.str("/tmp/x"))
	g.fails(unix.EROFS, unix.SYS_LINK, p, g.str("/etc/x"))
	g.fails(unix.EROFS, unix.SYS_SYMLINK, p, g.str("/etc/x"))
	g.fails(unix.EROFS, unix.SYS_ACCESS, p, unix.W_OK)
	g.fails(unix.EACCES, unix.SYS_ACCESS, p, unix.X_OK)
	g.fails(unix.EBUSY, unix.SYS_RMDIR, g.str("/tmp"))
	g.fails(unix.EXDEV, unix.SYS_RENAME, g.str("/tmp"), g.str("/tmp/x"))
	g.fails(unix.EROFS, unix.SYS_UTIMENSAT, cwdArg, p, 0, 0)
	g.ok(unix.SYS_ACCESS, p, unix.R_OK)
	fd := g.open("/etc/hosts", unix.O_RDONLY)
	g.fails(unix.EBADF, unix.SYS_WRITE, fd, p, 1)
	g.fails(unix.EINVAL, unix.SYS_FTRUNCATE, fd, 0)
	g.fails(unix.EBADF, unix.SYS_FALLOCATE, fd, 0, 0, 1)
}

func TestListing(t *testing.T) {
	g := newGuest(t, withFiles(t, archive(t, ordinary)), true)
	got := strings.Join(g.list("/"), " ")
	want := ". .. abs abslink dangling dev dirlink empty etc grow hard link loop loop2 out proc sh sys tmp totmp usr"
	if got != want {
		t.Errorf("root is %q, want %q", got, want)
	}
	if got := strings.Join(g.list("/proc/self/fd"), " "); got != ". .. 0 1 2 3" {
		t.Errorf("/proc/self/fd is %q", got)
	}
	// A directory may be emptied while it is read, a page at a time.
	const files = 300
	for i := range files {
		g.ok(unix.SYS_CLOSE, g.open(fmt.Sprintf("/tmp/f%d", i), unix.O_CREAT|unix.O_WRONLY))
	}
	fd := g.open("/tmp", unix.O_DIRECTORY)
	buf := g.alloc(256)
	removed := 0
	for {
		n := g.ok(unix.SYS_GETDENTS64, fd, buf, 256)
		if n == 0 {
			break
		}
		for b := append([]byte(nil), g.view(buf, int(n))...); len(b) > 0; b = b[int(b[16])|int(b[17])<<8:] {
			name, _, _ := strings.Cut(string(b[19:]), "\x00")
			if name != "." && name != ".." {
				g.ok(unix.SYS_UNLINKAT, fd, g.str(name), 0)
				removed++
			}
		}
	}
	if removed != files {
		t.Errorf("removed %d of %d", removed, files)
	}
	g.fails(unix.EINVAL, unix.SYS_GETDENTS64, g.open("/", unix.O_DIRECTORY), buf, 20)
	g.fails(unix.ENOTDIR, unix.SYS_GETDENTS64, g.open("/etc/hosts", 0), buf, 256)
	g.ok(unix.SYS_LSEEK, fd, 0, unix.SEEK_SET)
	if n := g.ok(unix.SYS_GETDENTS64, fd, buf, 256); n != 48 {
		t.Errorf("after a rewind %d bytes", n)
	}
}

// A VM without file access pays nothing for its archive, and the Go runtime's own look-ups are no file access.
func TestBundleIsLazy(t *testing.T) {
	g := newGuest(t, withFiles(t, []byte("this is no archive, whatever it is; and it is longer than a tar header"+strings.Repeat("x", 512))), true)
	for _, p := range []string{"/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "/proc/self/maps", "/dev/none", "/tmp/none"} {
		if _, e := g.readFile(p); e != unix.ENOENT {
			t.Errorf("%s: %v", p, e)
		}
	}
	if g.t.FilesError() != nil {
		t.Error("the archive was read")
	}
	if _, e := g.readFile("/etc/hosts"); e != unix.EIO {
		t.Errorf("a broken archive gives %v", e)
	}
	if g.t.FilesError() == nil {
		t.Error("no error is reported")
	}
	if _, e := g.readFile("/tmp/x"); e != unix.ENOENT {
		t.Errorf("/tmp under a broken archive: %v", e)
	}
}

func TestHostileArchives(t *testing.T) {
	deep := strings.Repeat("d/", 200)
	for _, tc := range []struct {
		name    string
		members []member
		path    string
		want    string
		e       unix.Errno
	}{
		{"dotdot", []member{{name: "a/../../x", body: "1"}, {name: "ok", body: "2"}}, "/x", "", unix.ENOENT},
		{"dotdot inside", []member{{name: "a/../x", body: "1"}}, "/x", "", unix.ENOENT},
		{"absolute", []member{{name: "//x", body: "1"}}, "/x", "1", 0},
		{"duplicate", []member{{name: "x", body: "1"}, {name: "x", body: "2"}}, "/x", "2", 0},
		{"file over directory", []member{{name: "x/y", body: "1"}, {name: "x", body: "2"}}, "/x/y", "1", 0},
		{"directory over file", []member{{name: "x", body: "1"}, {name: "x/y", body: "2"}}, "/x", "1", 0},
		{"through a link", []member{{name: "l", link: "/tmp", typ: tar.TypeSymlink}, {name: "l/x", body: "1"}}, "/tmp/x", "", unix.ENOENT},
		{"into tmp", []member{{name: "tmp/x", body: "1"}}, "/tmp/x", "", unix.ENOENT},
		{"over dev", []member{{name: "dev/null", body: "1"}, {name: "dev", body: "2"}}, "/dev/null", "", 0},
		{"over proc", []member{{name: "proc", link: "etc", typ: tar.TypeSymlink}}, "/proc/self/fd/9", "", unix.ENOENT},
		{"hard link to nothing", []member{{name: "x", link: "y", typ: tar.TypeLink}}, "/x", "", unix.ENOENT},
		{"hard link to directory", []member{{name: "y/", typ: tar.TypeDir}, {name: "x", link: "y", typ: tar.TypeLink}}, "/x", "", unix.ENOENT},
		{"hard link to itself", []member{{name: "x", link: "x", typ: tar.TypeLink}}, "/x", "", unix.ENOENT},
		{"hard link out", []member{{name: "x", link: "../../etc/passwd", typ: tar.TypeLink}}, "/x", "", unix.ENOENT},
		{"device", []member{{name: "x", typ: tar.TypeBlock}}, "/x", "", unix.ENOENT},
		{"fifo", []member{{name: "x", typ: tar.TypeFifo}}, "/x", "", unix.ENOENT},
		{"too deep", []member{{name: deep + "x", body: "1"}, {name: "y", body: "2"}}, "/y", "2", 0},
		{"long name", []member{{name: strings.Repeat("n", 300), body: "1"}, {name: "y", body: "2"}}, "/y", "2", 0},
		{"the root as a file", []member{{name: "/", typ: tar.TypeDir}, {name: ".", body: ""}, {name: "y", body: "2"}}, "/y", "2", 0},
		{"empty", nil, "/x", "", unix.ENOENT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGuest(t, withFiles(t, archive(t, tc.members)), true)
			got, e := g.readFile(tc.path)
			if got != tc.want || e != tc.e {
				t.Errorf("%s: %q, %v; want %q, %v (%v)", tc.path, got, e, tc.want, tc.e, g.t.FilesError())
			}
		})
	}
}

// Every way of cutting an archive off is an error or a shorter archive, never contents from elsewhere.
func TestTruncatedArchive(t *testing.T) {
	whole := archive(t, []member{{name: "a", body: strings.Repeat("A", 1000)}, {name: "b", body: strings.Repeat("B", 3000)}})
	for n := 0; n < len(whole); n += 37 {
		g := newGuest(t, withFiles(t, whole[:n]), true)
		for _, name := range []string{"a", "b"} {
			got, e := g.readFile("/" + name)
			if e == 0 && strings.Trim(got, strings.ToUpper(name)) != "" {
				t.Fatalf("cut at %d: %s holds something else", n, name)
			}
			if e != 0 && e != unix.EIO && e != unix.ENOENT {
				t.Fatalf("cut at %d: %v", n, e)
			}
		}
	}
	// A file that shrinks after it was indexed.
	cfg := withFiles(t, whole)
	g := newGuest(t, cfg, true)
	fd := g.open("/b", 0)
	if err := unix.Ftruncate(cfg.Files, 100); err != nil {
		t.Fatal(err)
	}
	g.fails(unix.EIO, unix.SYS_READ, fd, g.alloc(10), 10)
}

func TestSparseArchiveIsRefused(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// What GNU tar writes for --sparse: version 1.0 keeps the map in front of the data.
	if err := w.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 5, Mode: 0o644, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"GRAIL.x": "1"}}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("hello"))
	w.Close()
	raw := bytes.Replace(b.Bytes(), []byte("13 GRAIL.x=1\n"), []byte("13 GNU.sparse"), 1)
	g := newGuest(t, withFiles(t, raw), true)
	if got, e := g.readFile("/x"); e == 0 && got != "hello" {
		t.Errorf("%q", got)
	}
	h := &tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"GNU.sparse.major": "1"}}
	if !isSparse(h) || !isSparse(&tar.Header{Typeflag: tar.TypeGNUSparse}) {
		t.Error("sparse members are not recognised")
	}
}

func TestProgramAndProc(t *testing.T) {
	cfg := withFiles(t, archive(t, ordinary))
	cfg.Program, cfg.ProgramName = hostFile(t, []byte("ELF image")), "sha256sum"
	g := newGuest(t, cfg, true)
	buf := g.alloc(100)
	n := g.ok(unix.SYS_READLINK, g.str("/proc/self/exe"), buf, 100)
	if s := string(g.view(buf, int(n))); s != "/bin/sha256sum" {
		t.Errorf("/proc/self/exe is %q", s)
	}
	if n := g.ok(unix.SYS_READLINK, g.str("/proc/self/exe"), buf, 4); n != 4 {
		t.Errorf("cut to %d", n)
	}
	for _, p := range []string{"/proc/self/exe", "/bin/sha256sum"} {
		if s, e := g.readFile(p); s != "ELF image" || e != 0 {
			t.Errorf("%s: %q, %v", p, s, e)
		}
	}
	fd := g.open("/etc/hosts", 0)
	name := func(fd uint64) string {
		n := g.ok(unix.SYS_READLINK, g.str(fmt.Sprintf("/proc/self/fd/%d", fd)), buf, 100)
		return string(g.view(buf, int(n)))
	}
	if s := name(fd); s != "/etc/hosts" {
		t.Errorf("fd names %q", s)
	}
	// A file reopened has a position of its own; anything else is shared.
	g.read(fd, 2)
	fd2 := g.open(fmt.Sprintf("/proc/self/fd/%d", fd), 0)
	if s := g.read(fd2, 10); s != "hosts" {
		t.Errorf("reopened: %q", s)
	}
	tmp := g.open("/tmp/t", unix.O_CREAT|unix.O_RDWR)
	g.ok(unix.SYS_UNLINK, g.str("/tmp/t"))
	if s := name(tmp); s != "/tmp/t (deleted)" {
		t.Errorf("an unlinked file is named %q", s)
	}
	p := g.alloc(8)
	g.ok(unix.SYS_PIPE, p)
	w := g.open(fmt.Sprintf("/dev/fd/%d", g.u32(p+4)), unix.O_WRONLY)
	g.write(w, "through")
	if s := g.read(uint64(g.u32(p)), 10); s != "through" {
		t.Errorf("%q", s)
	}
	st := g.alloc(144)
	g.ok(unix.SYS_STAT, g.str(fmt.Sprintf("/proc/self/fd/%d", g.u32(p))), st)
	if m := g.u32(st + 24); m&unix.S_IFMT != unix.S_IFIFO {
		t.Errorf("a pipe's mode is %o", m)
	}
	g.ok(unix.SYS_LSTAT, g.str("/proc/self/fd/0"), st)
	if m := g.u32(st + 24); m&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("lstat's mode is %o", m)
	}
	g.fails(unix.ENOTDIR, unix.SYS_OPEN, g.str("/proc/self/fd/0/x"), 0, 0)
	g.fails(unix.EINVAL, unix.SYS_READLINK, g.str("/etc/hosts"), buf, 10)
}

func TestDirectories(t *testing.T) {
	g := newGuest(t, withFiles(t, archive(t, ordinary)), true)
	buf := g.alloc(4096)
	cwd := func() string {
		n := g.ok(unix.SYS_GETCWD, buf, 4096)
		return string(g.view(buf, int(n-1)))
	}
	g.ok(unix.SYS_CHDIR, g.str("/dirlink"))
	if s := cwd(); s != "/usr/share" {
		t.Errorf("cwd is %q", s)
	}
	if s, _ := g.readFile("a"); s != "A" {
		t.Errorf("relative to it: %q", s)
	}
	g.fails(unix.ERANGE, unix.SYS_GETCWD, buf, 10)
	g.ok(unix.SYS_MKDIR, g.str("/tmp/d"), 0o700)
	fd := g.open("/tmp/d", unix.O_DIRECTORY)
	g.ok(unix.SYS_FCHDIR, fd)
	g.ok(unix.SYS_RENAME, g.str("/tmp/d"), g.str("/tmp/e"))
	if s := cwd(); s != "/tmp/e" {
		t.Errorf("cwd of a renamed directory is %q", s)
	}
	g.ok(unix.SYS_RMDIR, g.str("/tmp/e"))
	g.fails(unix.ENOENT, unix.SYS_GETCWD, buf, 4096)
	g.fails(unix.ENOENT, unix.SYS_OPEN, g.str("x"), unix.O_CREAT|unix.O_WRONLY, 0)
	g.fails(unix.ENOENT, unix.SYS_MKDIR, g.str("x"), 0)
	g.ok(unix.SYS_CHDIR, g.str(".."))
	if s := cwd(); s != "/tmp" {
		t.Errorf("cwd is %q", s)
	}
	g.fails(unix.ENOTDIR, unix.SYS_CHDIR, g.str("/etc/hosts"))
	g.fails(unix.ENOTDIR, unix.SYS_FCHDIR, 0)
	g.fails(unix.ENOTDIR, unix.SYS_OPENAT, 0, g.str("x"), 0, 0)
	g.fails(unix.EBADF, unix.SYS_OPENAT, 77, g.str("x"), 0, 0)
	cfg := withFiles(t, archive(t, ordinary))
	cfg.Dir = "/etc"
	if s, e := newGuest(t, cfg, true).readFile("hosts"); s != "hosts" || e != 0 {
		t.Errorf("in Config.Dir: %q, %v", s, e)
	}
	cfg.Dir = "/none"
	if _, err := New(cfg); err == nil {
		t.Error("a missing Config.Dir was accepted")
	}
}

func FuzzBundle(f *testing.F) {
	f.Add(archive(f, ordinary))
	f.Add(archive(f, []member{{name: "a/../../x", body: "1"}}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		fd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
		if err != nil {
			t.Skip(err)
		}
		defer unix.Close(fd)
		unix.Write(fd, raw)
		cfg := bare()
		cfg.Files = fd
		g := newGuest(t, cfg, true)
		if g.t.tree.load() != 0 {
			return
		}
		for _, p := range g.tree("/") {
			p = strings.TrimPrefix(p, "/")
			if strings.Contains(p, "/../") || strings.HasPrefix(p, "/../") {
				t.Fatalf("name %q", p)
			}
			if s, e := g.readFile(p); e == 0 && len(s) > len(raw) && !strings.HasPrefix(p, "/dev") {
				t.Fatalf("%s: %d bytes from an archive of %d", p, len(s), len(raw))
			}
		}
	})
}

// BenchmarkIndex measures the first look-up in an archive of 10,000 files.
func BenchmarkIndex(b *testing.B) {
	var members []member
	for i := range 10000 {
		members = append(members, member{name: fmt.Sprintf("src/pkg%d/file%d.go", i/50, i), body: strings.Repeat("x", 3000)})
	}
	fd := hostFile(b, archive(b, members))
	cfg := bare()
	cfg.Files = fd
	for b.Loop() {
		tab, err := New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		if tab.tree.load() != 0 {
			b.Fatal(tab.FilesError())
		}
		tab.Close()
	}
}
