package vfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// twin performs the same calls on a table's /tmp and in a directory of the host, and compares.
type twin struct {
	*guest
	dir string
	fds map[uint64]int // guest descriptor to host descriptor
	r   *rand.Rand
	log []string
}

// hostTmp returns a directory on a tmpfs, whose behaviour ours follows, where there is one.
func hostTmp(t *testing.T) string {
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) == nil && st.Type == unix.TMPFS_MAGIC {
		if d, err := os.MkdirTemp("/dev/shm", "grail-vfs-"); err == nil {
			t.Cleanup(func() { os.RemoveAll(d) })
			return d
		}
	}
	t.Skip("no tmpfs at /dev/shm to compare with")
	return ""
}

func hostErrno(err error) unix.Errno { return errnoOf(err) }

func (w *twin) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *twin) same(what string, ours, theirs unix.Errno) bool {
	w.tb.Helper()
	if ours != 0 && theirs != 0 && (what == "link" || what == "rename") {
		return false // two paths, two faults: which one is named depends on the kernel's version
	}
	if ours == unix.EEXIST && theirs == unix.ENOENT && what == "symlink" {
		return false // a path with a slash at its end: so does this
	}
	if ours != theirs {
		n := max(0, len(w.log)-40)
		w.tb.Fatalf("%s: ours %v, the kernel's %v; before that:\n%s", what, ours, theirs, strings.Join(w.log[n:], "\n"))
	}
	return ours == 0
}

var twinNames = []string{"a", "b", "d", "d/a", "d/e", "d/e/f", "l", "l/a", "d/..", "./a", "d/./a", "a/", "d/", "l/", "d//a", "missing/x", "../a",
	".", "d/.", "d/e/..", strings.Repeat("n", 255), strings.Repeat("n", 256), "loop", "d/up/a"}

// deep is where both sides work: no chain of ".." in a name leads out of /tmp, or out of the host's directory.
const deep = "/1/2/3/4/5/6/w/"

func (w *twin) path() (ours, theirs string) {
	n := twinNames[w.r.IntN(len(twinNames))]
	return "/tmp" + deep + n, w.dir + deep + n
}

func (w *twin) fd() (uint64, int) {
	keys := make([]uint64, 0, len(w.fds))
	for k := range w.fds {
		keys = append(keys, k)
	}
	if len(keys) == 0 || w.r.IntN(20) == 0 {
		return 999, 999 // closed on both sides
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	k := keys[w.r.IntN(len(keys))]
	return k, w.fds[k]
}

func (w *twin) step() {
	r := w.r
	ours, theirs := w.path()
	p := w.str(ours)
	short := strings.TrimPrefix(ours, "/tmp"+deep)
	switch r.IntN(24) {
	case 0, 1, 2, 3:
		flags := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR}[r.IntN(3)]
		for _, f := range []int{unix.O_CREAT, unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_APPEND, unix.O_DIRECTORY, unix.O_NOFOLLOW, unix.O_PATH} {
			if r.IntN(4) == 0 {
				flags |= f
			}
		}
		if flags&unix.O_CREAT != 0 && flags&unix.O_DIRECTORY != 0 {
			flags &^= unix.O_DIRECTORY // changed its meaning between kernel versions
		}
		w.note("open %s %#x", short, flags)
		g, e := w.call(unix.SYS_OPEN, p, uint64(flags), 0o640)
		h, err := unix.Open(theirs, flags|unix.O_CLOEXEC, 0o640)
		if w.same("open", e, hostErrno(err)) {
			w.fds[g] = h
		}
	case 4, 5:
		g, h := w.fd()
		w.note("close %d", g)
		_, e := w.call(unix.SYS_CLOSE, g)
		if w.same("close", e, hostErrno(unix.Close(h))) {
			delete(w.fds, g)
		}
	case 6, 7:
		g, h := w.fd()
		b := make([]byte, []int{0, 1, 5, 100, 4096, 9000, 70000}[r.IntN(7)])
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		w.note("write %d %d", g, len(b))
		n, e := w.call(unix.SYS_WRITE, g, w.bytes(b), uint64(len(b)))
		m, err := unix.Write(h, b)
		if w.same("write", e, hostErrno(err)) && int(n) != m {
			w.tb.Fatalf("write: %d and %d", n, m)
		}
	case 8, 9:
		g, h := w.fd()
		n := []int{0, 1, 7, 4096, 10000, 100000}[r.IntN(6)]
		a, b := w.alloc(n), make([]byte, n)
		clear(w.view(a, n))
		w.note("read %d %d", g, n)
		k, e := w.call(unix.SYS_READ, g, a, uint64(n))
		m, err := unix.Read(h, b)
		if w.same("read", e, hostErrno(err)) && (int(k) != m || string(w.view(a, m)) != string(b[:m])) {
			w.tb.Fatalf("read: %d and %d bytes, or other contents; before that:\n%s", k, m, strings.Join(w.log, "\n"))
		}
	case 10:
		g, h := w.fd()
		off, n := r.Int64N(20000)-10, 1+r.IntN(5000)
		a, b := w.alloc(n), make([]byte, n)
		w.note("pread %d at %d", g, off)
		k, e := w.call(unix.SYS_PREAD64, g, a, uint64(n), uint64(off))
		m, err := unix.Pread(h, b, off)
		if w.same("pread", e, hostErrno(err)) && (int(k) != m || string(w.view(a, m)) != string(b[:m])) {
			w.tb.Fatalf("pread: %d and %d bytes, or other contents", k, m)
		}
	case 11:
		g, h := w.fd()
		off, b := r.Int64N(2<<20)-10, []byte("pwrite")
		w.note("pwrite %d at %d", g, off)
		_, e := w.call(unix.SYS_PWRITE64, g, w.bytes(b), uint64(len(b)), uint64(off))
		_, err := unix.Pwrite(h, b, off)
		w.same("pwrite", e, hostErrno(err))
	case 12, 13:
		g, h := w.fd()
		off, whence := r.Int64N(10000)-3000, []int{0, 1, 2, 9}[r.IntN(4)]
		w.note("lseek %d %d %d", g, off, whence)
		isDir := func() bool {
			var st unix.Stat_t
			return unix.Fstat(h, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
		}
		if isDir() {
			return
		}
		n, e := w.call(unix.SYS_LSEEK, g, uint64(off), uint64(whence))
		m, err := unix.Seek(h, off, whence)
		if w.same("lseek", e, hostErrno(err)) && int64(n) != m {
			w.tb.Fatalf("lseek: %d and %d", n, m)
		}
	case 14:
		g, h := w.fd()
		w.note("dup %d", g)
		n, e := w.call(unix.SYS_DUP, g)
		m, err := unix.FcntlInt(uintptr(h), unix.F_DUPFD_CLOEXEC, 0)
		if w.same("dup", e, hostErrno(err)) {
			w.fds[n] = m
		}
	case 15:
		g, h := w.fd()
		n := r.Int64N(3<<20) - 5
		w.note("ftruncate %d %d", g, n)
		_, e := w.call(unix.SYS_FTRUNCATE, g, uint64(n))
		w.same("ftruncate", e, hostErrno(unix.Ftruncate(h, n)))
	case 16:
		n := r.Int64N(30000)
		w.note("truncate %s %d", short, n)
		_, e := w.call(unix.SYS_TRUNCATE, p, uint64(n))
		w.same("truncate", e, hostErrno(unix.Truncate(theirs, n)))
	case 17:
		w.note("mkdir %s", short)
		_, e := w.call(unix.SYS_MKDIR, p, 0o750)
		w.same("mkdir", e, hostErrno(unix.Mkdir(theirs, 0o750)))
	case 18:
		w.note("rmdir %s", short)
		_, e := w.call(unix.SYS_RMDIR, p)
		w.same("rmdir", e, hostErrno(unix.Rmdir(theirs)))
	case 19:
		w.note("unlink %s", short)
		_, e := w.call(unix.SYS_UNLINK, p)
		w.same("unlink", e, hostErrno(unix.Unlink(theirs)))
	case 20:
		o2, t2 := w.path()
		flags := uint(0)
		if r.IntN(3) == 0 {
			flags = unix.RENAME_NOREPLACE
		}
		w.note("rename %s %s %d", short, strings.TrimPrefix(o2, "/tmp"+deep), flags)
		_, e := w.call(unix.SYS_RENAMEAT2, cwdArg, p, cwdArg, w.str(o2), uint64(flags))
		w.same("rename", e, hostErrno(unix.Renameat2(unix.AT_FDCWD, theirs, unix.AT_FDCWD, t2, flags)))
	case 21:
		o2, t2 := w.path()
		w.note("link %s %s", short, strings.TrimPrefix(o2, "/tmp"+deep))
		_, e := w.call(unix.SYS_LINK, p, w.str(o2))
		w.same("link", e, hostErrno(unix.Link(theirs, t2)))
	case 22:
		target := []string{"a", "d", "d/e", "nowhere", "loop", "..", "./d/", "l"}[r.IntN(8)]
		w.note("symlink %s %s", target, short)
		_, e := w.call(unix.SYS_SYMLINK, w.str(target), p)
		w.same("symlink", e, hostErrno(unix.Symlink(target, theirs)))
	case 23:
		w.stats(p, theirs, short)
	}
}

// stats compares what stat, lstat, readlink and access say.
func (w *twin) stats(p uint64, theirs, short string) {
	w.note("stat %s", short)
	for _, flag := range []int{0, unix.AT_SYMLINK_NOFOLLOW} {
		buf := w.alloc(144)
		_, e := w.call(unix.SYS_NEWFSTATAT, cwdArg, p, buf, uint64(flag))
		var st unix.Stat_t
		if w.same("stat", e, hostErrno(unix.Fstatat(unix.AT_FDCWD, theirs, &st, flag))) {
			got := w.hostStat(buf)
			if got.Mode != st.Mode || got.Nlink != st.Nlink || st.Mode&unix.S_IFMT == unix.S_IFREG && got.Size != st.Size {
				w.tb.Fatalf("stat %s: ours mode %o links %d size %d, the kernel's %o %d %d\n%s", short, got.Mode, got.Nlink, got.Size,
					st.Mode, st.Nlink, st.Size, strings.Join(w.log, "\n"))
			}
		}
	}
	buf, b := w.alloc(300), make([]byte, 300)
	k, e := w.call(unix.SYS_READLINK, p, buf, 300)
	n, err := unix.Readlink(theirs, b)
	if w.same("readlink", e, hostErrno(err)) && string(w.view(buf, int(k))) != string(b[:n]) {
		w.tb.Fatalf("readlink %s: %q and %q", short, w.view(buf, int(k)), b[:n])
	}
	_, e = w.call(unix.SYS_ACCESS, p, unix.R_OK|unix.W_OK)
	w.same("access", e, hostErrno(unix.Access(theirs, unix.R_OK|unix.W_OK)))
}

// tree lists a directory of the guest recursively.
func (g *guest) tree(path string) []string {
	var out []string
	for _, name := range g.list(path) {
		if name == "." || name == ".." {
			continue
		}
		p := path + "/" + name
		out = append(out, p)
		if fd, e := g.call(unix.SYS_OPEN, g.str(p), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); e == 0 {
			g.ok(unix.SYS_CLOSE, fd)
			out = append(out, g.tree(p)...)
		}
	}
	return out
}

func (g *guest) list(path string) []string {
	g.tb.Helper()
	fd := g.open(path, unix.O_DIRECTORY)
	defer g.ok(unix.SYS_CLOSE, fd)
	var names []string
	buf := g.alloc(600)
	for {
		n := g.ok(unix.SYS_GETDENTS64, fd, buf, 600)
		if n == 0 {
			return names
		}
		for b := g.view(buf, int(n)); len(b) > 0; {
			size := int(b[16]) | int(b[17])<<8
			name, _, _ := strings.Cut(string(b[19:size]), "\x00")
			names = append(names, name)
			b = b[size:]
		}
	}
}

func TestTmpLikeTheKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the guest is its own superuser: only root sees the same errors")
	}
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("GRAIL_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("GRAIL_SEED=%d", seed)
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	r := rand.New(rand.NewPCG(seed, 1))
	for round := range 60 {
		w := &twin{guest: newGuest(t, bare(), round%2 == 0), dir: hostTmp(t), fds: map[uint64]int{}, r: r}
		for i := 2; i <= len(deep); i++ {
			if i == len(deep) || deep[i] == '/' {
				w.call(unix.SYS_MKDIR, w.str("/tmp"+deep[:i]), 0o755)
			}
		}
		if err := os.MkdirAll(w.dir+deep, 0o755); err != nil {
			t.Fatal(err)
		}
		for range 600 {
			w.step()
		}
		var ours, theirs []string
		for _, p := range w.tree("/tmp") {
			ours = append(ours, strings.TrimPrefix(p, "/tmp/"))
		}
		filepath.Walk(w.dir, func(p string, _ os.FileInfo, err error) error {
			if p != w.dir {
				theirs = append(theirs, strings.TrimPrefix(p, w.dir+"/"))
			}
			return err
		})
		sort.Strings(ours)
		sort.Strings(theirs)
		if strings.Join(ours, "\n") != strings.Join(theirs, "\n") {
			t.Fatalf("trees differ: ours %q, the kernel's %q", ours, theirs)
		}
		for g, h := range w.fds {
			unix.Close(h)
			w.ok(unix.SYS_CLOSE, g)
		}
		w.emptyTmp()
	}
}

// emptyTmp removes everything and checks that nothing stays accounted for.
func (g *guest) emptyTmp() {
	g.tb.Helper()
	list := g.tree("/tmp")
	for i := len(list) - 1; i >= 0; i-- {
		if _, e := g.call(unix.SYS_UNLINK, g.str(list[i])); e == unix.EISDIR {
			g.ok(unix.SYS_RMDIR, g.str(list[i]))
		}
	}
	if a := &g.t.tree.arena; a.used != 0 || g.t.tree.nodes != 0 {
		g.tb.Fatalf("%d bytes and %d nodes are still accounted for in an empty /tmp", a.used, g.t.tree.nodes)
	}
}
