package jail

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Nobody is the user and group that a root process becomes.
const Nobody = 65534

// Config says what the process still needs.
type Config struct {
	// Shared says that the process lives in its starter's namespaces, because the host allows no others. Its
	// root cannot be emptied then: only the system-call filter keeps it from the host's files.
	Shared bool
	// Files bounds open descriptors (RLIMIT_NOFILE); 0: DefaultFiles. The host's hard limit bounds it too.
	Files uint64
	// FileBytes bounds the size to which a file may grow (RLIMIT_FSIZE); 0: no bound. A write beyond it
	// would fail with EFBIG, and with SIGXFSZ.
	FileBytes uint64
	// Syscalls and Numbers name the system calls needed besides those of the Go runtime. ioctl, mmap,
	// mprotect, clone and prctl keep their rules even when they are named.
	Syscalls []string
	Numbers  []uint32
	// Domains are the address families of which the process may make sockets; others are refused (EPERM).
	Domains []int
	// Ioctls are the requests that ioctl may make, on any descriptor. The most frequent comes first.
	Ioctls []uint32
	// NoYield has sched_yield fail: a thread under SCHED_DEADLINE gives up the rest of its period by it (sched(7)), and the Go runtime calls it
	// where threads meet at a lock, whatever comes of it.
	NoYield bool
	// Log lets forbidden calls pass and has the kernel log them, to find out what a list lacks. Never use
	// it outside of development.
	Log bool
}

// DefaultFiles is enough for a guest's 4096 descriptors, each with one in an epoll set, and its capabilities.
const DefaultFiles = 16384

// Result says how the process is jailed.
type Result struct {
	// Missing lists what the host did not allow, in words; empty is the full jail.
	Missing []string
	Took    time.Duration
}

// Enter jails the calling process, all threads of it. The process must have only its own threads (no cgo). An
// error means that it is jailed in part, and must not go on.
func Enter(cfg Config) (Result, error) {
	began := time.Now()
	_ = began.Local().String() // loads the time zone's file while there is one
	var r Result
	p, err := newPolicy(&cfg)
	if err != nil {
		return r, err
	}
	prog, err := p.assemble()
	if err != nil {
		return r, err
	}
	if cfg.Shared {
		r.Missing = append(r.Missing, "namespaces of its own: the host's root stays mounted, unreachable by the system-call filter only")
	} else if err := emptyRoot(); err != nil {
		return r, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := setLimits(&cfg); err != nil {
		return r, err
	}
	if err := dropPrivileges(); err != nil {
		return r, err
	}
	if err := install(prog); err != nil {
		return r, err
	}
	r.Took = time.Since(began)
	return r, nil
}

// limit is one resource limit.
type limit struct {
	name     string
	resource int
	value    uint64
}

// Resource numbers that x/sys lacks (asm-generic/resource.h).
const (
	rlimitMsgQueue = 12
	rlimitNice     = 13
	rlimitRTPrio   = 14
)

func setLimits(cfg *Config) error {
	files, size := cfg.Files, cfg.FileBytes
	if files == 0 {
		files = DefaultFiles
	}
	if size == 0 {
		size = unix.RLIM_INFINITY
	}
	// No RLIMIT_NPROC: it counts all processes of a user, and every jailed VM is the same user.
	for _, l := range []limit{
		{"open files", unix.RLIMIT_NOFILE, files},
		{"core size", unix.RLIMIT_CORE, 0},
		{"file size", unix.RLIMIT_FSIZE, size},
		{"locked memory", unix.RLIMIT_MEMLOCK, 0},
		{"message queues", rlimitMsgQueue, 0},
		{"niceness", rlimitNice, 0},
		{"real-time priority", rlimitRTPrio, 0},
	} {
		var old unix.Rlimit
		if err := unix.Prlimit(0, l.resource, nil, &old); err != nil {
			return fmt.Errorf("jail: read the limit of %s: %w", l.name, err)
		}
		v := min(l.value, old.Max)
		if err := unix.Prlimit(0, l.resource, &unix.Rlimit{Cur: v, Max: v}, nil); err != nil {
			return fmt.Errorf("jail: limit %s to %d: %w", l.name, v, err)
		}
	}
	return nil
}

// ErrCgo reports a program whose threads Go does not control.
var ErrCgo = errors.New("jail: the program is built with cgo, which has threads of its own; build it with CGO_ENABLED=0")

// ErrNotAlone reports a process that would empty the host's own root: it is not in a mount namespace of its own.
var ErrNotAlone = errors.New("jail: the process is in the host's mount namespace; start it in its own, or jail it as Shared")
