package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

func (c *cli) driverCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "driver", GroupID: "driver", Short: "Create, watch and crash driver VMs",
		Long: `A driver VM serves host files or block devices to other VMs as disks. When it crashes, faults
or hangs, graild replaces it; its clients notice a short stall.`,
	})
	cmd.AddCommand(c.driverCreateCommand(), c.driverLsCommand(), c.driverRestartCommand(), c.driverResumeCommand(), c.driverSetCommand(), c.driverUpgradeCommand(), c.driverCrashCommand(),
		c.driverRmCommand(), c.driverCrashesCommand(), c.driverStatsCommand(), c.driverShareCommand(), c.driverStateCommand())
	return cmd
}

func (c *cli) driverCreateCommand() *cobra.Command {
	var disks, ports []string
	var subnet, uplink string
	var socket, unsealed bool
	var engine, memory string
	var policy policyFlags
	var console consoleFlags
	var tenantName string
	var share shareFlags
	cmd := &cobra.Command{
		Use: "create TYPE NAME [--disk ID=PATH[:ro]]... [--port PORT[=TENANT]]...", Short: "Make a driver VM and start it; the TYPE is blk, net or console",
		Long: `A blk driver serves host files or block devices as disks. A net driver is a switch between the VMs plugged into its ports: each port has a
MAC address and an IP address, from which alone its VM can send; VMs find each other by the names of their ports; those of different
tenants do not see each other. With --uplink user they reach what this host reaches (TCP, UDP and, where the host lets its users, ping), but
nothing of its loopback; and their ports can be published on the host, with --publish of grailctl run and create.

A console driver keeps what all VMs print. graild makes one by itself, con0, unless there is one, or GRAIL_CONSOLE=files is set when it starts.`,
		Example: `  truncate -s 1G disk.img
  grailctl driver create blk blk0 --disk data=disk.img
  grailctl driver create blk blk1 --disk root=/dev/sdb --disk iso=cd.iso:ro --socket
  grailctl driver create net net0 --port web=1 --port db=1 --port other=2
  grailctl driver create net net1 --port web --uplink user
  grailctl driver create net net2 --port web --subnet 10.80.0.0/24 --uplink tap:grail0
  grailctl driver create console con0 --size 1M --rate 64K`,
		Args: exactly("a TYPE", "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := api.DriverConfig{Type: args[0], Name: args[1], Engine: hv.Engine(engine), Socket: socket, Unsealed: unsealed}
			if cfg.Type != "blk" && cfg.Type != "net" && cfg.Type != "console" {
				return fmt.Errorf("there is no driver of type %q; use blk, net or console", cfg.Type)
			}
			err := policy.into(&cfg, cmd.Flags())
			if err != nil {
				return err
			}
			if cfg.MemoryBytes, err = size.Parse(memory); err != nil {
				return fmt.Errorf("--memory: %w", err)
			}
			if cfg.Share, err = share.share(); err != nil {
				return err
			}
			cfg.Tenant = tenantName
			if cfg.Console, err = console.config(cmd.Flags(), cfg.Type); err != nil {
				return err
			}
			if cfg.Type == "console" {
				if len(disks)+len(ports) > 0 || subnet != "" || uplink != "" || socket {
					return errors.New("--disk, --port, --subnet, --uplink and --socket are for other drivers; a console driver has none of these")
				}
			} else if cfg.Type == "net" {
				if cfg.Ports, err = parsePorts(ports); err != nil {
					return err
				}
				if len(disks) > 0 {
					return errors.New("--disk is for block drivers; a net driver has ports")
				}
				cfg.Subnet, cfg.Uplink, cfg.Socket = subnet, uplink, true
			} else if len(ports) > 0 || subnet != "" || uplink != "" {
				return errors.New("--port, --subnet and --uplink are for net drivers; a block driver has disks")
			} else if len(disks) == 0 {
				return errors.New("a block driver needs a disk; give one with --disk ID=PATH, or --disk ID=PATH:ro to only read it")
			}
			for _, s := range disks {
				k, err := parseDisk(s)
				if err != nil {
					return err
				}
				cfg.Disks = append(cfg.Disks, k)
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			d, err := client.CreateDriver(cmd.Context(), api.CreateDriver{Config: cfg})
			if err != nil {
				return err
			}
			if c.json {
				return c.print(d)
			}
			fmt.Fprintln(c.stdout, d.Name)
			for _, k := range d.Disks {
				if k.Socket != "" {
					fmt.Fprintf(c.stdout, "%s %s\n", k.ID, k.Socket)
				}
			}
			for _, p := range d.Ports {
				fmt.Fprintf(c.stdout, "%s %s %s %s\n", p.Name, p.MAC, p.Address, p.Socket)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&disks, "disk", nil, "offer the file or block device PATH as disk ID: ID=PATH, or ID=PATH:ro to only read it (repeatable)")
	fl.StringArrayVar(&ports, "port", nil, "a port of a net driver: NAME, or NAME=TENANT with a number: ports of different numbers do not see each other, whatever tenants their VMs belong to; with ,queues=N behind it N pairs of queues; with ,unpinned its VM may use other addresses than its own, as a bridge does (repeatable)")
	fl.StringVar(&subnet, "subnet", "", "the IPv4 network of a net driver's ports (default: 10.77.0.0/16)")
	fl.StringVar(&uplink, "uplink", "", "the way of a net driver's VMs out of the host: user, through sockets of an unprivileged process; user:loopback, which lets them also reach this host's 127.0.0.1 under the gateway's address; tap:NAME, by a tap device of that name, which is made with an address and NAT if it is not there and graild runs as root (default: none)")
	fl.BoolVar(&socket, "socket", false, "also offer each disk to other VMMs on a vhost-user socket, and print its path")
	fl.BoolVar(&unsealed, "unsealed", false, "admit vhost-user clients that can take their memory away, such as DPDK's virtio-user; one that does makes the driver fail")
	fl.StringVar(&engine, "engine", "", "what executes the driver: kvm or process (default: kvm where it works)")
	fl.StringVar(&memory, "memory", "64M", "the driver VM's own memory")
	policy.add(fl)
	completePolicy(cmd)
	fl.StringVar(&tenantName, "tenant", "", "the tenant out of whose part the driver's reservation is taken (default: the host's)")
	share.addDriver(cmd)
	_ = cmd.RegisterFlagCompletionFunc("tenant", completeTenants)
	console.add(fl)
	return cmd
}

// parsePorts reads NAME[=TENANT][,queues=N][,unpinned] of each port.
func parsePorts(list []string) (ports []api.Port, err error) {
	for _, s := range list {
		head, options, _ := strings.Cut(s, ",")
		name, tenant, ok := strings.Cut(head, "=")
		p := api.Port{Name: name}
		for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
			queues, several := strings.CutPrefix(o, "queues=")
			switch {
			case several:
				n, err := strconv.Atoi(queues)
				if err != nil || n < 1 {
					return nil, fmt.Errorf("--port %q: queues=%s is no number of pairs of queues from 1 on", s, queues)
				}
				p.Queues = n
			case o == "unpinned":
				p.Unpinned = true
			default:
				return nil, fmt.Errorf("--port %q: there is no option %q; there is queues=N and unpinned", s, o)
			}
		}
		if ok {
			n, err := strconv.ParseUint(tenant, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("--port %q: the tenant is no number from 0 to 65535", s)
			}
			p.Tenant = uint16(n)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// parseDisk reads ID=PATH[:ro].
func parseDisk(s string) (api.Disk, error) {
	id, path, ok := strings.Cut(s, "=")
	path, ro := strings.CutSuffix(path, ":ro")
	if !ok || id == "" || path == "" {
		return api.Disk{}, fmt.Errorf("--disk %q is not of the form ID=PATH or ID=PATH:ro", s)
	}
	abs, err := filepath.Abs(path)
	return api.Disk{ID: id, Path: abs, ReadOnly: ro}, err
}

func (c *cli) driverLsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List driver VMs, their disks and clients", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []api.Driver
			err := c.retry(cmd.Context(), func(client *api.Client) (err error) {
				list, err = client.Drivers(cmd.Context())
				return err
			})
			if err != nil {
				return err
			}
			if c.json {
				return c.print(list)
			}
			return c.table("NAME\tTYPE\tSTATE\tENGINE\tINSTANCE\tCRASHES\tCLIENTS\tSPARES\tDISKS", func(w io.Writer) {
				for _, d := range list {
					var disks []string
					for _, k := range d.Disks {
						disks = append(disks, diskLine(k))
					}
					for _, p := range d.Ports {
						disks = append(disks, fmt.Sprintf("%s = %s (tenant %d)", p.Name, p.Address.Addr(), p.Tenant))
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\n", d.Name, d.Type, stateOfDriver(d), dash(string(d.EngineUsed)), d.Generation,
						d.Crashes, len(d.Clients), sparesOf(d), strings.Join(disks, ", "))
					if d.Message != "" {
						fmt.Fprintf(w, "\t\t%s\n", d.Message)
					}
				}
			})
		},
	}
}

func (c *cli) driverRestartCommand() *cobra.Command {
	return c.driverVerb(&cobra.Command{Use: "restart NAME", Short: "Replace a driver VM by a new instance, after a drain"}, (*api.Client).RestartDriver)
}

func (c *cli) driverResumeCommand() *cobra.Command {
	return c.driverVerb(&cobra.Command{
		Use: "resume NAME", Short: "Have a driver VM that kept crashing try again",
		Long: `A driver VM that dies again and again soon after its start is started again ever more slowly, and after some 80 s not any more: it is in a crash loop.
Its clients wait meanwhile. resume tries again at once and returns when the driver serves, or says why it does not.`,
		Example: "  grailctl driver ls                     # says what is wrong\n  grailctl driver resume blk0",
	}, (*api.Client).ResumeDriver)
}

// driverVerb completes a command that does something to a driver and tells where it stands then.
func (c *cli) driverVerb(cmd *cobra.Command, do func(*api.Client, context.Context, string) (api.Driver, error)) *cobra.Command {
	cmd.ValidArgsFunction, cmd.Args = completeDrivers, exactly("the NAME of a driver")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, _, err := c.connect(cmd.Context())
		if err != nil {
			return err
		}
		d, err := do(client, cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if c.json {
			return c.print(d)
		}
		fmt.Fprintf(c.stdout, "%s is %s, instance %d\n", d.Name, d.State, d.Generation)
		return nil
	}
	return cmd
}

func (c *cli) driverCrashCommand() *cobra.Command {
	var how string
	cmd := &cobra.Command{
		Use: "crash NAME --how kill|fault|hang|stall", Short: "Make a driver VM fail, to see it recover", ValidArgsFunction: completeDrivers,
		Long: "crash kills the driver VM's process, makes the driver's program fault, hang, or stall: beat without doing its work. graild then replaces it as after any crash.",
		Args: exactly("the NAME of a driver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch how {
			case "kill", "fault", "hang", "stall":
			case "":
				return errors.New("say how to crash it: --how kill, --how fault, --how hang or --how stall")
			default:
				return fmt.Errorf("a driver can be crashed by kill, fault, hang or stall, not %q", how)
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			d, err := client.CrashDriver(cmd.Context(), args[0], how)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(d)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&how, "how", "", "kill, fault, hang or stall")
	return cmd
}

func (c *cli) driverRmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "End a driver VM and forget it, with its crash records", ValidArgsFunction: completeDrivers,
		Args: exactly("the NAME of a driver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			if err := client.RemoveDriver(cmd.Context(), args[0], force); err != nil {
				return err
			}
			if c.json {
				return c.print(args)
			}
			fmt.Fprintln(c.stdout, args[0])
			return nil
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also one that has clients; their I/O then waits for ever")
	return cmd
}

func (c *cli) driverCrashesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "crashes [NAME]", Short: "Show how driver VMs died, and how long each recovery took", ValidArgsFunction: completeDrivers,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []api.Crash
			err := c.retry(cmd.Context(), func(client *api.Client) (err error) {
				list, err = client.Crashes(cmd.Context(), strings.Join(args, ""))
				return err
			})
			if err != nil {
				return err
			}
			if c.json {
				return c.print(list)
			}
			for i, r := range list {
				if i > 0 {
					fmt.Fprintln(c.stdout)
				}
				showCrash(c.stdout, r)
			}
			return nil
		},
	}
}

func showCrash(w io.Writer, r api.Crash) {
	who := fmt.Sprintf("instance %d", r.Generation)
	if r.OfSpare {
		who = "a spare"
	}
	fmt.Fprintf(w, "%s  %s of driver %s: %s", stamp(r.Crashed), who, r.Driver, r.Cause)
	if r.Injected != "" {
		fmt.Fprintf(w, " (%s on request)", r.Injected)
	}
	fmt.Fprintf(w, "\n  why        %s\n", r.Message)
	step := func(name string, t time.Time) {
		if !t.IsZero() {
			fmt.Fprintf(w, "  %-10s +%.1f ms\n", name, float64(t.Sub(r.Crashed).Microseconds())/1000)
		}
	}
	step("detected", r.Detected)
	step("stopped", r.Stopped)
	step("launched", r.Launched)
	step("ready", r.Ready)
	step("attached", r.Attached)
	step("first", r.First)
	if r.State != nil {
		fmt.Fprintf(w, "  state      %s\n", stateLine(*r.State))
	}
	if t := r.Trace; t != nil {
		showTrace(w, t)
	}
	if r.Report == nil {
		return
	}
	if f := r.Report.Fault; f != nil && r.Trace != nil {
		showFault(w, f)
	}
	const most = 10
	for _, l := range r.Report.Console[max(len(r.Report.Console)-most, 0):] {
		fmt.Fprintf(w, "  console    %s\n", l)
	}
}

// completeDrivers offers the names of drivers, if a graild runs.
func completeDrivers(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := running(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := client.Drivers(cmd.Context())
	var names []string
	for _, d := range list {
		names = append(names, d.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
