package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/containerd/console"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/linuximage"
	"github.com/grailos/grail/mgmt/place"
)

// slowPrepare is after how long the preparation of an image shows that it is at work.
const slowPrepare = time.Second

// prepareLinux makes what Linux VMs of an architecture boot from, where it is not there yet.
func (c *cli) prepareLinux(ctx context.Context, dirs place.Dirs, arch string) error {
	if arch == "" {
		arch = runtime.GOARCH
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	slow := time.AfterFunc(slowPrepare, func() {
		fmt.Fprintf(c.stderr, "grailctl: fetching the distribution's %s kernel; this is done once\n", arch)
	})
	defer slow.Stop()
	_, err := linuximage.Ensure(ctx, dirs.Images(), arch)
	return err
}

func (c *cli) execCommand() *cobra.Command {
	var tty bool
	var dir string
	var env []string
	cmd := &cobra.Command{
		Use: "exec [flags] NAME [--] COMMAND [ARG...]", GroupID: "vm", Short: "Run a command in a Linux VM that runs",
		Long: `exec runs COMMAND in a Linux VM that runs, with the standard input, output, error and exit code of this command.
Signals are passed on. If this command ends first, so does COMMAND.`,
		Example: `  grailctl exec web -- ps
  grailctl exec -t web -- sh
  tar c . | grailctl exec web -- tar x -C /srv`,
		ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 && args[1] == "--" {
				args = append(args[:1], args[2:]...)
			}
			if len(args) < 2 {
				return errors.New("grailctl exec needs the NAME of a VM and a COMMAND; see grailctl exec --help")
			}
			return c.exec(cmd.Context(), args[0], &hv.Command{Argv: args[1:], Env: env, Dir: dir, TTY: tty})
		},
	}
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	cmd.Flags().StringVarP(&dir, "workdir", "w", "", "directory in which the command starts (default: /)")
	cmd.Flags().StringArrayVarP(&env, "env", "e", nil, "set a variable: NAME=value (repeatable)")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// exec runs a command in a VM. It talks to the VM's own process, so that graild may die meanwhile.
func (c *cli) exec(ctx context.Context, name string, command *hv.Command) error {
	client, dirs, err := c.connect(ctx)
	if err != nil {
		return err
	}
	conn, err := dialLinux(ctx, client, dirs, name)
	if err != nil {
		return err
	}
	defer conn.Close()
	signals := make(chan os.Signal, 16)
	if command.TTY {
		term, err := console.ConsoleFromFile(c.stdin)
		if err != nil {
			return errors.New("--tty: standard input is no terminal; leave --tty out")
		}
		if size, err := term.Size(); err == nil {
			command.Rows, command.Columns = size.Height, size.Width
		}
		if err := term.SetRaw(); err != nil {
			return fmt.Errorf("--tty: %w", err)
		}
		defer func() { _ = term.Reset() }()
		signal.Notify(signals, unix.SIGWINCH, unix.SIGTERM, unix.SIGHUP)
		defer signal.Stop(signals)
		return c.converse(conn, name, command, term, signals)
	}
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	return c.converse(conn, name, command, nil, signals)
}

// dialLinux connects to the process of a Linux VM that runs.
func dialLinux(ctx context.Context, client *api.Client, dirs place.Dirs, name string) (conn *hv.Conn, err error) {
	v, err := client.VM(ctx, name)
	switch {
	case err != nil:
		return nil, err
	case v.Personality != api.Linux:
		return nil, fmt.Errorf("VM %s is %s and runs one program alone; that is for Linux VMs", name, v.Personality)
	case !v.State.Live():
		return nil, fmt.Errorf("VM %s does not run; start it with grailctl start %s", name, name)
	}
	err = place.WithSocket(filepath.Join(dirs.Sockets(), name+"."+strconv.Itoa(v.Generation)), func(short string) (err error) {
		conn, err = hv.Dial(short)
		return err
	})
	return conn, err
}

// detachKey leaves the console: Ctrl-].
const detachKey = 0x1d

func (c *cli) consoleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "console NAME", GroupID: "vm", Short: "Join the console of a Linux VM; Ctrl-] leaves it",
		Long: `console shows what a Linux VM prints on its console from now on, and types what is typed here. Ctrl-] leaves it, and the VM runs on.
What was printed before is in its log: grailctl logs NAME.`,
		Args: exactly("the NAME of a VM"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error { return c.joinConsole(cmd.Context(), args[0]) },
	}
}

func (c *cli) joinConsole(ctx context.Context, name string) error {
	client, dirs, err := c.connect(ctx)
	if err != nil {
		return err
	}
	conn, err := dialLinux(ctx, client, dirs, name)
	if err != nil {
		return err
	}
	defer conn.Close()
	if term, err := console.ConsoleFromFile(c.stdin); err == nil {
		if err := term.SetRaw(); err != nil {
			return fmt.Errorf("console: %w", err)
		}
		defer func() { _ = term.Reset() }()
		fmt.Fprintf(c.stderr, "[joined the console of %s; Ctrl-] leaves it]\r\n", name)
	}
	if err := c.send(conn, hv.Request{Op: hv.OpConsole}, detachKey, c.stdout); err != nil {
		return err
	}
	var resp hv.Response
	fds, err := conn.Receive(&resp)
	for _, fd := range fds {
		unix.Close(fd)
	}
	if errors.Is(err, hv.ErrClosed) {
		return fmt.Errorf("VM %s ended", name)
	}
	return err
}

// noKey stands for no key that ends the input.
const noKey = -1

// send makes a request with a pipe, into which standard input is copied as long as this command lives, or until key is typed, and with other
// files. The VM's process must not hold standard input itself: it would go on reading the terminal after this command has ended.
func (c *cli) send(conn *hv.Conn, req hv.Request, key int, files ...*os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	fds := []int{int(r.Fd())}
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if err := conn.Send(req, fds...); err != nil {
		w.Close()
		return err
	}
	go func() {
		defer w.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := c.stdin.Read(buf)
			i := -1
			if key >= 0 {
				i = bytes.IndexByte(buf[:n], byte(key))
			}
			if i >= 0 {
				n = i
			}
			if _, werr := w.Write(buf[:n]); werr != nil || err != nil || i >= 0 {
				return
			}
		}
	}()
	return nil
}

// converse has a VM's process run a command, and passes on what happens here until it has ended.
func (c *cli) converse(conn *hv.Conn, name string, command *hv.Command, term console.Console, signals <-chan os.Signal) error {
	err := c.send(conn, hv.Request{Op: hv.OpExec, Command: command}, noKey, c.stdout, c.stderr)
	if err != nil {
		return err
	}
	go passTerminal(conn, term, signals)
	var resp hv.Response
	fds, err := conn.Receive(&resp)
	for _, fd := range fds {
		unix.Close(fd)
	}
	switch {
	case errors.Is(err, hv.ErrClosed):
		return fmt.Errorf("VM %s ended", name)
	case err != nil:
		return err
	case resp.Error != "" && (resp.Exit == nil || *resp.Exit == 0):
		return fmt.Errorf("VM %s: %s", name, resp.Error)
	case resp.Exit == nil:
		return fmt.Errorf("VM %s did not say how the command ended", name)
	}
	if resp.Error != "" {
		fmt.Fprintf(c.stderr, "grailctl: VM %s: %s\n", name, resp.Error)
	}
	if *resp.Exit != 0 {
		return exitCode(*resp.Exit)
	}
	return nil
}

// passTerminal passes signals on to the command, and the size of its terminal.
func passTerminal(conn *hv.Conn, term console.Console, signals <-chan os.Signal) {
	for s := range signals {
		req := hv.Request{Op: hv.OpSignal, Signal: int(s.(unix.Signal))}
		if s == unix.SIGWINCH {
			size, err := term.Size()
			if err != nil {
				continue
			}
			req = hv.Request{Op: hv.OpResize, Rows: size.Height, Columns: size.Width}
		}
		if conn.Send(req) != nil {
			return
		}
	}
}
