package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/starter"
	"github.com/grailos/grail/mgmt/version"
)

// cli is one run of grailctl.
type cli struct {
	stdin, stdout, stderr *os.File
	json                  bool
}

// command builds the command tree.
func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "grailctl",
		Short: "Run programs in VMs of their own, with devices served by driver VMs",
		Long: `grailctl runs ordinary static Linux programs, each in a hardware-isolated VM, and gives
them disks that are served by driver VMs. A driver VM may crash: it is replaced in
milliseconds, and its clients notice a short stall.

Exit codes: the guest's own; 128+n when signal n ended it; 125 when grailctl or graild
failed or the command line is wrong; 126 when the program cannot run as a guest;
127 when the program does not exist.

State lies in $GRAIL_STATE_DIR (root: /var/lib/grail, else $XDG_STATE_HOME/grail or
~/.local/state/grail), sockets in $GRAIL_RUN_DIR (root: /run/grail, else
$XDG_RUNTIME_DIR/grail).`,
		Example: `  grailctl doctor
  grailctl run -- ./hello
  grailctl driver create blk blk0 --disk data=disk.img
  grailctl run --disk blk0/data -- ./program /dev/data`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true,
	}
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON, for programs")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "vm", Title: "Personality VMs:"}, &cobra.Group{ID: "driver", Title: "Driver VMs:"},
		&cobra.Group{ID: "host", Title: "This host:"})
	root.AddCommand(c.runCommand(), c.createCommand(), c.startCommand(), c.stopCommand(), c.rmCommand(), c.psCommand(),
		c.setCommand(), c.reclaimCommand(), c.execCommand(), c.consoleCommand(), c.attachCommand(), c.detachCommand(), c.imageCommand(),
		c.logsCommand(), c.inspectCommand(), c.driverCommand(), c.injectCommand(), c.crashCommand(), c.eventsCommand(), c.tenantCommand(), c.topCommand(), c.doctorCommand(), c.versionCommand(), c.daemonCommand())
	return root
}

// connect returns a client of graild, which it starts when none runs.
func (c *cli) connect(ctx context.Context) (*api.Client, place.Dirs, error) {
	dirs, err := place.Default()
	if err != nil {
		return nil, dirs, err
	}
	client, err := starter.Ensure(ctx, dirs)
	return client, dirs, err
}

// retry asks graild, and the next one if that one dies meanwhile. The question must do no harm when asked twice.
func (c *cli) retry(ctx context.Context, ask func(*api.Client) error) error {
	for {
		client, _, err := c.connect(ctx)
		if err != nil {
			return err
		}
		if err = ask(client); !api.Down(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryPause):
		}
	}
}

// retryPause keeps a graild that dies at once from being started over and over at full speed.
const retryPause = 10 * time.Millisecond

// running returns a client of the graild that runs already.
func running(ctx context.Context) (*api.Client, api.Version, error) {
	dirs, err := place.Default()
	if err != nil {
		return nil, api.Version{}, err
	}
	client := api.NewClient(dirs.API())
	v, err := client.Version(ctx)
	return client, v, err
}

// print writes v as JSON.
func (c *cli) print(v any) error {
	e := json.NewEncoder(c.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// exactly is cobra.ExactArgs with a message that says what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		want := strings.Join(names, " and ")
		if len(names) == 0 {
			return fmt.Errorf("%s takes no arguments, not %q; see %s --help", cmd.CommandPath(), args, cmd.CommandPath())
		}
		return fmt.Errorf("%s needs %s; got %d arguments; see %s --help", cmd.CommandPath(), want, len(args), cmd.CommandPath())
	}
}

// group makes a command that only has subcommands refuse others, which cobra by itself does not.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q; see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
		}
		return cmd.Help()
	}
	return cmd
}

// atLeastOne asks for one argument or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return nil
		}
		return fmt.Errorf("%s needs %s; see %s --help", cmd.CommandPath(), name, cmd.CommandPath())
	}
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", GroupID: "host", Short: "Print the versions of grailctl and of the running graild", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, v, err := running(cmd.Context())
			if c.json {
				out := map[string]any{"grailctl": version.Full(), "api": api.APIVersion}
				if err == nil {
					out["graild"] = v
				}
				return c.print(out)
			}
			fmt.Fprintln(c.stdout, "grailctl", version.Full())
			if err != nil {
				fmt.Fprintln(c.stdout, "graild   not running")
				return nil
			}
			fmt.Fprintf(c.stdout, "graild   %s, PID %d\n", v.Version, v.PID)
			return nil
		},
	}
}

func (c *cli) daemonCommand() *cobra.Command {
	cmd := group(&cobra.Command{Use: "daemon", GroupID: "host", Short: "Look after graild itself"})
	cmd.AddCommand(&cobra.Command{
		Use: "start", Short: "Start graild if none runs; other commands do so too", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, _, err := c.connect(cmd.Context())
			return err
		},
	}, &cobra.Command{
		Use: "stop", Short: "End graild; VMs and drivers run on, and the next graild adopts them", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := running(cmd.Context())
			if err == nil {
				err = client.Shutdown(cmd.Context())
			}
			if api.Absent(err) {
				return errors.New("no graild runs")
			}
			return err
		},
	}, &cobra.Command{
		Use: "status", Short: "Tell whether graild runs, and where its log is", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, v, err := running(cmd.Context())
			if err != nil {
				return errors.New("no graild runs; grailctl starts it when it is needed")
			}
			if c.json {
				return c.print(v)
			}
			fmt.Fprintf(c.stdout, "graild %s, PID %d, since %s\nstate  %s\nlog    %s\n", v.Version, v.PID,
				v.Started.Local().Format("2006-01-02 15:04:05"), v.State, v.Log)
			return nil
		},
	})
	return cmd
}
