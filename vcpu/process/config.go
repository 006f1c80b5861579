//go:build linux && amd64

package process

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// Config says what to run and within which bounds.
type Config struct {
	// Program is the static ELF to execute; its descriptor need not stay open after Start. It is executed
	// in place when the jailed user may read and execute it, else from a private copy in memory.
	Program *os.File
	// Argv is the guest's whole argument vector, Argv[0] included; Env its whole environment ("K=V").
	Argv, Env []string
	// MemoryBytes bounds the guest's writable private memory (RLIMIT_DATA; MemorySlack is added for
	// what runtimes map and never touch). Zero: no bound.
	MemoryBytes uint64
	// MaxThreads bounds the guest's threads; clone fails with EAGAIN beyond it. Zero: DefaultMaxThreads.
	MaxThreads int
	// MaxFiles is one more than the highest descriptor number that Install accepts. Zero: DefaultMaxFiles.
	MaxFiles int
	// Native lists the calls that run on the host kernel. Nil: DefaultNative.
	Native []Rule
	// AllowWeak starts the guest without namespaces where the host allows none. The seccomp filter,
	// no-new-privileges and the limits remain; Guest.Weak says that it happened.
	AllowWeak bool
	// NoTrace does not use ptrace, as on a host that forbids it.
	NoTrace bool
}

// Defaults and fixed bounds.
const (
	DefaultMaxThreads = 512
	DefaultMaxFiles   = 1024
	// MemorySlack is added to Config.MemoryBytes.
	MemorySlack = 64 << 20
	// addressSpace is the room for reservations that cost nothing until touched. It is bounded because page
	// tables are not free: 1/512 of it in the worst case.
	addressSpace = 64 << 30
	stackBytes   = 8 << 20
)

var errConfig = errors.New("process: bad configuration")

func (c *Config) check() error {
	if c.Program == nil {
		return fmt.Errorf("%w: no program", errConfig)
	}
	if len(c.Argv) == 0 {
		return fmt.Errorf("%w: Argv must hold the program's name at least", errConfig)
	}
	for _, list := range [][]string{c.Argv, c.Env} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return fmt.Errorf("%w: a NUL byte in an argument or an environment string", errConfig)
			}
		}
	}
	if c.MaxThreads < 0 || c.MaxFiles < 0 || c.MaxFiles > 1<<20 {
		return fmt.Errorf("%w: MaxThreads %d and MaxFiles %d must not be negative, MaxFiles at most %d",
			errConfig, c.MaxThreads, c.MaxFiles, 1<<20)
	}
	return nil
}

// withDefaults returns a copy with every zero replaced.
func (c Config) withDefaults() Config {
	if c.MaxThreads == 0 {
		c.MaxThreads = DefaultMaxThreads
	}
	if c.MaxFiles == 0 {
		c.MaxFiles = DefaultMaxFiles
	}
	if c.Native == nil {
		c.Native = DefaultNative()
	}
	return c
}
