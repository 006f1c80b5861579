package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

// Sandbox is a private Grail. Its methods may be called from any goroutine.
type Sandbox struct {
	bin  string
	dirs place.Dirs
	env  []string
}

// New returns a sandbox that uses the programs in bin and keeps its state and sockets in dir. Nothing is started.
func New(bin, dir string) *Sandbox {
	dirs := place.Dirs{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}
	return &Sandbox{bin: bin, dirs: dirs, env: append(os.Environ(), "GRAIL_STATE_DIR="+dirs.State, "GRAIL_RUN_DIR="+dirs.Run, "GRAIL_LIBEXEC="+bin)}
}

// Dirs returns the sandbox's directories.
func (s *Sandbox) Dirs() place.Dirs { return s.dirs }

// Client returns a client of the sandbox's graild, for those who ask it too often for a process each time. It starts no graild.
func (s *Sandbox) Client() *api.Client { return api.NewClient(s.dirs.API()) }

// Program returns the path of one of the programs that belong to the sandbox, such as "examples/hello".
func (s *Sandbox) Program(name string) string { return filepath.Join(s.bin, name) }

// graceful is how long grailctl has to end after it was asked to.
const graceful = 5 * time.Second

// Command prepares a grailctl. It does not get the signals of the caller's terminal; when ctx ends it gets a SIGTERM.
func (s *Sandbox) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.Program("grailctl"), args...)
	cmd.Env = s.env
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = graceful
	return cmd
}

// Do runs grailctl and returns what it printed. Its own message becomes the error.
func (s *Sandbox) Do(ctx context.Context, args ...string) ([]byte, error) {
	cmd := s.Command(ctx, args...)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		if text := strings.TrimSpace(msg.String()); text != "" {
			return nil, errors.New(text)
		}
		return nil, fmt.Errorf("grailctl %s: %w", strings.Join(args, " "), err)
	}
	return out.Bytes(), nil
}

// Ask runs grailctl with --json and decodes what it printed.
func (s *Sandbox) Ask(ctx context.Context, answer any, args ...string) error {
	b, err := s.Do(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("grailctl %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Driver returns what grailctl inspect tells of a driver.
func (s *Sandbox) Driver(ctx context.Context, name string) (d api.Driver, err error) {
	err = s.Ask(ctx, &d, "inspect", name)
	return d, err
}

// lastWords bounds what Account returns of graild's log, in bytes.
const lastWords = 4 << 10

// Account returns what a person wants to see when something went wrong: the drivers, the VMs, and the end of graild's log.
func (s *Sandbox) Account(ctx context.Context) string {
	var b strings.Builder
	for _, args := range [][]string{{"driver", "ls"}, {"driver", "crashes"}, {"ps", "--all"}} {
		out, err := s.Do(ctx, args...)
		if err != nil {
			out = []byte(err.Error() + "\n")
		}
		fmt.Fprintf(&b, "grailctl %s\n%s", strings.Join(args, " "), out)
	}
	log, err := os.ReadFile(s.dirs.Log())
	if err != nil {
		return b.String() + err.Error() + "\n"
	}
	fmt.Fprintf(&b, "the end of graild's log\n%s", log[max(0, len(log)-lastWords):])
	return b.String()
}

// cleanTimeout is how long the removal of everything may take.
const cleanTimeout = 60 * time.Second

// Clean removes every VM and ends graild. It works also after the work was interrupted, and takes no context for that
// reason. Errors: what could not be removed.
func (s *Sandbox) Clean() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	var status api.Version
	if s.Ask(ctx, &status, "daemon", "status") != nil {
		return nil // it does not run
	}
	var vms []api.VM
	var drivers []api.Driver
	err := s.Ask(ctx, &vms, "ps", "--all")
	for _, v := range vms {
		_, e := s.Do(ctx, "rm", "--force", v.Name)
		err = errors.Join(err, e)
	}
	err = errors.Join(err, s.Ask(ctx, &drivers, "driver", "ls")) // those of images have gone with their VMs
	for _, d := range drivers {
		_, e := s.Do(ctx, "driver", "rm", "--force", d.Name)
		err = errors.Join(err, e)
	}
	_, e := s.Do(ctx, "daemon", "stop")
	return errors.Join(err, e)
}
