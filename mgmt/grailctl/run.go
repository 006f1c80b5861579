package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/containerd/console"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/trace"
)

func (c *cli) runCommand() *cobra.Command {
	var f vmFlags
	var remove, tty bool
	cmd := &cobra.Command{
		Use:     "run [flags] [--] PROGRAM [ARG...]",
		GroupID: "vm",
		Short:   "Run a program in a VM of its own, in the foreground",
		Long: `run starts PROGRAM, a static Linux program on this host, in a VM of its own. The guest's
standard input, output, error and exit code are the command's own. Ctrl-C is sent to the
guest as SIGINT; a second one ends the VM. The VM outlives a crash of graild.

With --personality linux, a Linux system is booted in the VM, PROGRAM is a command of that
system, and the VM ends when it has ended; without PROGRAM, when it is stopped.`,
		Example: `  grailctl run -- ./hello
  grailctl run --rm --memory 64M -- busybox sha256sum < file
  grailctl run --files ./site --env PORT=80 -- ./server
  grailctl run --disk blk0/data:ro -- ./fshash data
  grailctl run --net net0/web -- ./netcheck serve
  grailctl run --personality linux -- uname -a
  grailctl run --personality linux -t -- sh
  grailctl run --personality linux --image debian -- apt list --installed`,
		Args: f.program,
		RunE: func(cmd *cobra.Command, args []string) error {
			if tty {
				reset, err := c.rawTerminal()
				if err != nil {
					return err
				}
				defer reset()
			}
			return c.run(cmd.Context(), &f, remove, tty, args)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "put the terminal into raw mode, so that the guest gets every key, Ctrl-C too")
	cmd.Flags().BoolVar(&remove, "rm", false, "forget the VM when it has ended")
	return cmd
}

func (c *cli) createCommand() *cobra.Command {
	var f vmFlags
	cmd := &cobra.Command{
		Use:     "create [flags] [--] PROGRAM [ARG...]",
		GroupID: "vm",
		Short:   "Make a VM without starting it",
		Example: `  grailctl create --name web --memory 64M -- ./server
  grailctl create --name www --personality linux --net net0/www --publish 8080:80
  grailctl start web`,
		Args: f.program,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, program, err := f.config(args)
			if err != nil {
				return err
			}
			program.Close() // of a Linux VM there is none
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			v, err := client.CreateVM(cmd.Context(), api.CreateVM{Config: cfg})
			if err != nil {
				return err
			}
			if c.json {
				return c.print(v)
			}
			fmt.Fprintln(c.stdout, v.Name)
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

func (c *cli) startCommand() *cobra.Command {
	var attach bool
	cmd := &cobra.Command{
		Use:               "start NAME",
		GroupID:           "vm",
		Short:             "Start a VM that was made by create, or has ended",
		Long:              "start runs the VM in the background; its output goes to its log (grailctl logs). With --attach it runs in the foreground, as with run.",
		Args:              exactly("the NAME of a VM"),
		ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			client, dirs, err := c.connect(ctx)
			if err != nil {
				return err
			}
			v, err := client.VM(ctx, args[0])
			if err != nil {
				return err
			}
			var program *os.File
			if v.Personality == api.Linux {
				err = c.prepareLinux(ctx, dirs, v.Arch)
			} else {
				program, err = openProgram(v.Program)
			}
			if err != nil {
				return err
			}
			defer program.Close()
			if attach {
				if v.TTY {
					reset, err := c.rawTerminal()
					if err != nil {
						return err
					}
					defer reset()
				}
				return c.foreground(ctx, dirs, v.VMConfig, v.Generation, program)
			}
			files, err := c.pack(ctx, v.Files)
			if err != nil {
				return err
			}
			ticket, release, err := api.HandOver(dirs.Handover(), present(map[api.Role]*os.File{api.RoleProgram: program, api.RoleFiles: files}))
			if err != nil {
				return err
			}
			defer release()
			v, err = client.StartVM(ctx, v.Name, api.StartVM{Ticket: ticket, Wait: true})
			if err != nil {
				return err
			}
			c.notes(v)
			if c.json {
				return c.print(v)
			}
			fmt.Fprintln(c.stdout, v.Name)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "run in the foreground, with standard input, output and error")
	return cmd
}

// run makes a VM and runs it in the foreground.
func (c *cli) run(ctx context.Context, f *vmFlags, remove, tty bool, args []string) error {
	cfg, program, err := f.config(args)
	if err != nil {
		return err
	}
	defer program.Close()
	cfg.Remove = remove
	_, dirs, err := c.connect(ctx)
	if err != nil {
		return err
	}
	if cfg.Personality == api.Linux {
		cfg.TTY = tty
		if err := c.prepareLinux(ctx, dirs, cfg.Arch); err != nil {
			return err
		}
	}
	return c.foreground(ctx, dirs, cfg, notCreated, program)
}

// rawTerminal puts the terminal of standard input into raw mode. reset undoes that.
func (c *cli) rawTerminal() (reset func(), err error) {
	t, err := console.ConsoleFromFile(c.stdin)
	if err != nil {
		return nil, errors.New("--tty: standard input is no terminal; leave --tty out")
	}
	if err := t.SetRaw(); err != nil {
		return nil, fmt.Errorf("--tty: %w", err)
	}
	return func() { _ = t.Reset() }, nil
}

// present leaves out the files that are not there.
func present(files map[api.Role]*os.File) map[api.Role]*os.File {
	for role, f := range files {
		if f == nil {
			delete(files, role)
		}
	}
	return files
}

// notes tells a person what is weaker than asked for.
func (c *cli) notes(v api.VM) {
	if v.CPU == 0 {
		return
	}
	for _, n := range v.Notes {
		fmt.Fprintln(c.stderr, "grailctl:", n)
	}
}

// notCreated stands for the generation of a VM that does not exist yet.
const notCreated = -1

// foreground starts a VM, which has had the given number of runs, with this command's own standard files, passes signals
// on, and ends as the guest does.
func (c *cli) foreground(ctx context.Context, dirs place.Dirs, cfg api.VMConfig, runs int, program *os.File) error {
	// From here on, signals are the guest's.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)

	packing, stopPacking := context.WithCancelCause(ctx)
	packed := make(chan struct{})
	var files *os.File
	var err error
	go func() {
		defer close(packed)
		files, err = c.pack(packing, cfg.Files)
	}()
	select {
	case <-packed:
	case s := <-signals:
		stopPacking(errors.New("interrupted"))
		<-packed
		return exitCode(api.ExitSignal + int(s.(unix.Signal)))
	}
	stopPacking(nil)
	if err != nil {
		return err
	}
	if cfg.TTY {
		signal.Notify(signals, unix.SIGWINCH) // has the guest learn the terminal's new size
	}
	v, err := c.startHere(ctx, dirs, cfg, runs, map[api.Role]*os.File{api.RoleProgram: program, api.RoleFiles: files,
		api.RoleStdin: c.stdin, api.RoleStdout: c.stdout, api.RoleStderr: c.stderr})
	if files != nil {
		files.Close()
	}
	if err != nil {
		return err
	}
	c.notes(v)

	done := make(chan struct{})
	defer close(done)
	go c.passSignals(ctx, v.Name, signals, done)
	end, err := c.await(ctx, v.Name, v.Generation)
	if err != nil {
		return err
	}
	if cfg.Remove {
		err := c.retry(ctx, func(client *api.Client) error { return client.RemoveVM(ctx, v.Name, false) })
		if err != nil && api.KindOf(err) != api.NotFound {
			fmt.Fprintln(c.stderr, "grailctl:", oneLine(err))
		}
	}
	return c.ended(end, program)
}

// startHere starts a VM, which it makes first when it does not exist. Should graild die meanwhile, the next one is asked
// how far it came.
func (c *cli) startHere(ctx context.Context, dirs place.Dirs, cfg api.VMConfig, runs int, files map[api.Role]*os.File) (v api.VM, err error) {
	for {
		client, _, err := c.connect(ctx)
		if err != nil {
			return v, err
		}
		v, err = handOverAndStart(ctx, client, dirs, cfg, runs == notCreated, files)
		if !api.Down(err) {
			return v, err
		}
		var now api.VM
		err = c.retry(ctx, func(client *api.Client) (err error) {
			now, err = client.VM(ctx, cfg.Name)
			return err
		})
		switch {
		case api.KindOf(err) == api.NotFound && err != nil:
			runs = notCreated
		case err != nil:
			return v, err
		case now.State != api.Created && now.Generation > max(runs, 0):
			return now, nil
		default:
			runs = now.Generation
		}
	}
}

// handOverAndStart starts a VM, which it makes if create is set; if that fails, there is none.
func handOverAndStart(ctx context.Context, client *api.Client, dirs place.Dirs, cfg api.VMConfig, create bool,
	files map[api.Role]*os.File) (api.VM, error) {
	ticket, release, err := api.HandOver(dirs.Handover(), present(files))
	if err != nil {
		return api.VM{}, err
	}
	defer release()
	start := api.StartVM{Ticket: ticket}
	if create {
		return client.CreateVM(ctx, api.CreateVM{Config: cfg, Start: &start})
	}
	return client.StartVM(ctx, cfg.Name, start)
}

// passSignals sends signals on to the guest. A second SIGINT ends the VM.
func (c *cli) passSignals(ctx context.Context, name string, signals <-chan os.Signal, done <-chan struct{}) {
	interrupts := 0
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			sig := s.(unix.Signal)
			if sig == unix.SIGINT {
				if interrupts++; interrupts > 1 {
					sig = unix.SIGKILL
				}
			}
			err := c.retry(ctx, func(client *api.Client) error { return client.SignalVM(ctx, name, int(sig)) })
			if err != nil && api.KindOf(err) != api.Busy && api.KindOf(err) != api.NotFound {
				fmt.Fprintf(c.stderr, "grailctl: signal to %s: %s\n", name, oneLine(err))
			}
		}
	}
}

// await returns the VM when its run has ended, however often graild dies meanwhile.
func (c *cli) await(ctx context.Context, name string, generation int) (v api.VM, err error) {
	err = c.retry(ctx, func(client *api.Client) error {
		v, err = client.WaitVM(ctx, name, generation)
		return err
	})
	return v, err
}

// ended turns the end of a run into this command's own.
func (c *cli) ended(v api.VM, program io.ReaderAt) error {
	r := v.Report
	if r == nil {
		return fmt.Errorf("VM %s ended without a report; see grailctl inspect %s", v.Name, v.Name)
	}
	say := func(format string, args ...any) {
		fmt.Fprintf(c.stderr, "grailctl: VM %s %s\n", v.Name, fmt.Sprintf(format, args...))
	}
	switch r.Cause {
	case hv.CauseExit:
		if r.Message != "" {
			say("failed: %s", r.Message)
		}
		if r.Code == 0 {
			return nil
		}
		return exitCode(r.Code & 0xff)
	case hv.CauseSignal:
		sig := unix.Signal(r.Signal)
		if r.Fault != nil && r.Fault.Signal == r.Signal {
			names, _ := trace.Open(program) // without names the addresses still tell
			t := trace.Decode(r.Fault, names)
			say("ended by signal %s: %s%s", unix.SignalName(sig), t.What, where(t))
		} else if sig != unix.SIGINT && sig != unix.SIGTERM && sig != unix.SIGPIPE && sig != unix.SIGHUP {
			say("ended by signal %s", unix.SignalName(sig))
		}
		return exitCode(api.ExitSignal + r.Signal)
	case hv.CauseStop:
		return exitCode(api.ExitSignal + int(unix.SIGKILL))
	case hv.CauseMemory:
		switch {
		case r.Message == "":
			say("used up its memory reservation; give it more with --memory")
		case r.Stats.Memory.Bound > 0: // it was asked for some of it
			say("ended: %s", r.Message)
		default:
			say("ended: %s; give it more with --memory", r.Message)
		}
		return exitCode(api.ExitSignal + int(unix.SIGKILL))
	case hv.CauseKilled:
		say("was killed: %s", r.Message)
		return exitCode(api.ExitSignal + int(unix.SIGKILL))
	case hv.CauseSetup:
		say("did not start: %s", r.Message)
		return exitCode(api.ExitCannotRun)
	}
	say("failed: %s", r.Message)
	for _, l := range r.Console[max(0, len(r.Console)-consoleLines):] {
		fmt.Fprintf(c.stderr, "  | %s\n", l)
	}
	return exitCode(api.ExitError)
}

// consoleLines is how many of a console's last lines explain a failure.
const consoleLines = 10

// where names the place of a fault.
func where(t *api.Trace) string {
	if len(t.Stack) == 0 {
		return ""
	}
	f := t.Stack[0]
	if f.Func == "" {
		return fmt.Sprintf(" at %#x", f.PC)
	}
	if f.File == "" {
		return " in " + f.Func
	}
	return fmt.Sprintf(" in %s (%s:%d)", f.Func, f.File, f.Line)
}
