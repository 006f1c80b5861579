package vfs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/conlog"
	"github.com/grailos/grail/hv/inject"
)

// Config says what one guest may reach. Descriptors are the host's; -1 means none. The table uses Stdin, Stdout,
// Stderr, Log, Files and Program without owning them: they must stay open until Close.
type Config struct {
	Stdin, Stdout, Stderr int
	// Log is two files that hold the console's output, used in turn: when one has reached LogLimit the
	// other is emptied and used.
	Log      [2]int
	LogLimit int64 // bytes a log file; 0: conlog.DefaultLimit
	// Console is where the console's output goes in place of Log, or nil. It may be closed when New has returned, except for its Kick.
	Console *hv.ConsoleRing
	// Files is an uncompressed tar archive, the guest's read-only root. It is indexed at the first path
	// look-up that needs it.
	Files       int
	Program     int    // the program's ELF, behind /proc/self/exe
	ProgramName string // base name of the program: /proc/self/exe reads /bin/<ProgramName>
	Dir         string // the initial working directory; "": the root
	Caps        []hv.CapSpec
	TmpLimit    uint64 // bytes that /tmp may hold; 0: DefaultTmpLimit
	Tail        int    // console lines kept for reports; 0: hv.ConsoleTail
	// OnMessage gets every message that the guest writes to its control channel, on the guest's thread.
	// It must not block. Message.Attach is always nil.
	OnMessage func(abi.Message)
	// Busy is an 8-byte aligned field, at least 8 bytes, that counts device calls in progress (an
	// atomic uint64 in host order, in memory that others may map); nil: none. Where it goes on as a hv.Spec.HostStatus does, also what
	// the devices fail to do is counted there.
	Busy []byte
}

// DefaultTmpLimit bounds /tmp where Config does not, in bytes.
const DefaultTmpLimit = 64 << 20

// Table is one guest's descriptors, file tree and capabilities. It is safe for concurrent use.
type Table struct {
	mu    sync.RWMutex // guards slots
	slots []slot
	most  int // descriptors that the guest may have

	tree    tree
	cwd     atomic.Pointer[node]
	umask   atomic.Uint32
	console *conlog.Console
	control *Control
	busy    *atomic.Uint64
	page    []byte        // Config.Busy
	devices atomic.Int64  // that were installed
	objects atomic.Uint64 // last Mapping.Object given out

	// What a guest may hold of the host's besides descriptors is counted and bounded.
	pipes   atomic.Int64 // pipes that are open
	watched atomic.Int64 // entries of epoll instances
	copies  atomic.Int64 // host descriptors that such entries have of their own
	listed  atomic.Int64 // directory entries in listings

	devRequests, devBytes atomic.Uint64

	// Faults are those that were injected and wait to strike.
	Faults inject.Set
}

// New builds the table of a guest that is about to start: console at 0, 1 and 2, then Caps in order.
func New(cfg Config) (*Table, error) {
	t := &Table{most: mostFDs()}
	if cfg.Busy != nil {
		b, err := counter(cfg.Busy)
		if err != nil {
			return nil, err
		}
		t.busy, t.page = b, cfg.Busy
	}
	t.umask.Store(0o022)
	t.control = newControl(cfg.OnMessage)
	t.console = conlog.New(cfg.Tail, cfg.Log, cfg.LogLimit)
	if cfg.Console != nil {
		if err := t.console.Share(cfg.Console); err != nil {
			return nil, err
		}
	}
	t.tree.init(&cfg)
	t.cwd.Store(t.tree.root)
	in := newFile(&consoleIn{fd: cfg.Stdin}, unix.O_RDONLY)
	out := newFile(newConsoleOut(t.console, cfg.Stdout), unix.O_WRONLY)
	errs := newFile(newConsoleOut(t.console, cfg.Stderr), unix.O_WRONLY)
	if isTerminal(cfg.Stdin) { // a terminal is open for both, as a login leaves it
		in = newFile(&consoleIn{fd: cfg.Stdin, out: newConsoleOut(t.console, cfg.Stdin)}, unix.O_RDWR)
	}
	for _, f := range []*file{in, out, errs} {
		t.install(f, 0, false, nil)
	}
	if _, err := t.InstallCaps(cfg.Caps...); err != nil {
		t.Close()
		return nil, err
	}
	if cfg.Dir != "" && cfg.Dir != "/" {
		if e := t.setDir(cfg.Dir); e != 0 {
			t.Close()
			return nil, fmt.Errorf("vfs: working directory %s: %w", cfg.Dir, e)
		}
	}
	return t, nil
}

// mostFDs bounds the guest's descriptors so that those that they take from the host leave enough to the VMM.
func mostFDs() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil || lim.Cur >= 2*MaxFDs {
		return MaxFDs
	}
	return max(64, int(lim.Cur)/2)
}

// Close closes every descriptor of the guest and frees /tmp. No call may be in progress.
func (t *Table) Close() {
	for fd := range t.slots {
		t.drop(fd)
	}
	t.control.close()
	t.tree.close()
}

// Control returns the hv side of the guest's control channel.
func (t *Table) Control() *Control { return t.control }

// Console returns the last lines of the console, oldest first, made printable.
func (t *Table) Console() []string { return t.console.Lines() }

// Said returns the last line on the console by which a program's runtime began to say what it dies of, or "".
func (t *Table) Said() string { return t.console.Said() }

// DevStats returns how many device requests were performed, and the bytes that they moved.
func (t *Table) DevStats() (requests, bytes uint64) {
	return t.devRequests.Load(), t.devBytes.Load()
}

// FilesError returns why the archive behind the root could not be read, if it could not.
func (t *Table) FilesError() error { return t.tree.bundleError() }

var errBadCounter = errors.New("vfs: Busy is not 8 aligned bytes")
