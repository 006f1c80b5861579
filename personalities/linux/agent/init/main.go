// Command init (grail-init) is the first process of a Linux guest: it loads modules, mounts, sets up the network, runs the
// guest's main program, and does what the host asks for through a virtio-serial port (personalities/linux/agent). It stays in memory when
// the root file system is switched, so the image needs to know nothing of it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
	"github.com/grailos/grail/personalities/linux/agent/guest"
)

// version is this program's.
const version = "1"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "grail-init: to be started by a Linux kernel, as process 1")
		os.Exit(2)
	}
	m := &machine{stopping: make(chan struct{}), mainDone: make(chan struct{})}
	defer func() {
		if v := recover(); v != nil {
			m.panicked(v)
			m.reset()
		}
	}()
	m.catchSignals()
	m.reaper = guest.NewReaper(true)
	if err := m.setUp(); err != nil {
		m.failure = err.Error()
		say("%v", err)
	}
	m.server = &guest.Server{Reaper: m.reaper, Env: m.config.Env, Call: m.call, Panicked: m.panicked, Hello: agent.Hello{Agent: version,
		Kernel: release(), Arch: runtime.GOARCH, BootMs: bootTime().Milliseconds(), Failure: m.failure}}
	m.startMain()
	if m.port == nil {
		m.idle() // without a port, there is only the console
	}
	say("%v", m.server.Serve(m.port))
	m.idle()
}

// machine is the guest.
type machine struct {
	config  agent.Config
	failure string // of the set-up
	reaper  *guest.Reaper
	server  *guest.Server
	port    *guest.Port

	mainStarted bool
	mainExit    agent.Exit
	mainDone    chan struct{} // closed behind mainExit
	stopping    chan struct{} // closed when a shutdown begins
	stop        onceMode
}

// say prints a line on the console.
func say(format string, a ...any) { fmt.Fprintf(os.Stderr, "grail-init: "+format+"\n", a...) }

// panicked reports a mistake of ours, which must not end the machine.
func (m *machine) panicked(v any) { say("panic: %v\n%s", v, debug.Stack()) }

// idle leaves the machine to its main program and to signals.
func (m *machine) idle() { select {} }

// setUp prepares what config says. What fails is left out, so that the host can see to it.
func (m *machine) setUp() error {
	if err := mountKernel(); err != nil {
		return err
	}
	failed := []error{readConfig(&m.config), loadModules()}
	failed = append(failed, m.openPort(), m.switchRoot())
	for i := range m.config.Mounts {
		failed = append(failed, m.mountDisk(&m.config.Mounts[i]))
	}
	failed = append(failed, loopback())
	if m.config.Network != nil {
		failed = append(failed, m.setNetwork(m.config.Network))
	}
	return errors.Join(failed...)
}

// readConfig reads the guest's configuration, if it has one.
func readConfig(c *agent.Config) error {
	b, err := os.ReadFile(agent.ConfigPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = json.Unmarshal(b, c); err == nil {
			err = c.Check()
		}
	}
	if err != nil {
		*c = agent.Config{}
		return fmt.Errorf("%s: %w", agent.ConfigPath, err)
	}
	return nil
}

// portWait is how long the agent's port is awaited.
const portWait = 10 * time.Second

func (m *machine) openPort() error {
	var path string
	err := await(portWait, func() (err error) {
		path, err = guest.FindPort("/sys/class/virtio-ports", "/dev", agent.PortName)
		return err
	})
	if err != nil {
		return err
	}
	m.port, err = guest.OpenPort(path)
	return err
}

// startMain runs the main program on the console.
func (m *machine) startMain() {
	p := m.config.Main
	if p == nil {
		return
	}
	m.mainStarted = true
	child, err := func() (*guest.Child, error) {
		tty, err := openConsole()
		if err != nil {
			return nil, err
		}
		defer tty.Close()
		return guest.Launch(m.reaper, p, m.config.Env, guest.Streams{In: tty, Out: tty, Err: tty, Terminal: true})
	}()
	ended := func(x agent.Exit) {
		m.mainExit = x
		close(m.mainDone)
		if m.config.OnExit != "" {
			m.shutdown(agent.Shutdown{Mode: m.config.OnExit})
		}
	}
	if err != nil {
		say("%v", err)
		go ended(guest.NotStarted(err))
		return
	}
	go func() {
		<-child.Done()
		ended(guest.ExitOf(child.Status()))
	}()
}

// openConsole opens the terminal behind /dev/console, which can control a session.
func openConsole() (*os.File, error) {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	if err != nil {
		return nil, err
	}
	list := strings.Fields(string(b)) // the last is the one that /dev/console stands for
	if len(list) == 0 {
		return os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	}
	return os.OpenFile("/dev/"+list[len(list)-1], os.O_RDWR|unix.O_NOCTTY, 0)
}

// catchSignals keeps signals from ending this process, which would end the kernel, and takes those by which programs such as busybox's poweroff
// ask the first process for the machine's end.
func (m *machine) catchSignals() {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM)
	go func() {
		for s := range ch {
			switch s {
			case unix.SIGUSR1:
				go m.shutdown(agent.Shutdown{Mode: agent.Halt})
			case unix.SIGUSR2:
				go m.shutdown(agent.Shutdown{Mode: agent.PowerOff})
			case unix.SIGTERM, unix.SIGINT: // Ctrl-Alt-Del is the latter
				go m.shutdown(agent.Shutdown{Mode: agent.Reboot})
			}
		}
	}()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // otherwise Ctrl-Alt-Del resets at once
}

// release returns the kernel's, as uname -r prints it.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// bootTime returns for how long the kernel has been running.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
