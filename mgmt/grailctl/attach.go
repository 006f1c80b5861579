package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
)

// deviceFlags are the flags that name devices of driver VMs.
type deviceFlags struct{ disks, nets []string }

func (f *deviceFlags) add(cmd *cobra.Command, what string) {
	cmd.Flags().StringArrayVar(&f.disks, "disk", nil, what+" a disk of a driver VM: DRIVER/DISK, or DRIVER/DISK:ro if it is only read (repeatable)")
	cmd.Flags().StringArrayVar(&f.nets, "net", nil, what+" a port of a net driver: DRIVER/PORT (repeatable)")
	completeDevices(cmd)
}

// devices returns what the flags name.
func (f *deviceFlags) devices() (list []api.Device, err error) {
	for _, s := range f.disks {
		ref, err := parseDiskRef("--disk", s)
		if err != nil {
			return nil, err
		}
		list = append(list, api.Device{Disk: &ref})
	}
	for _, s := range f.nets {
		ref, err := parseNetRef(s)
		if err != nil {
			return nil, err
		}
		list = append(list, api.Device{Net: &ref})
	}
	if len(list) == 0 {
		return nil, errors.New("name a device with --disk DRIVER/DISK or --net DRIVER/PORT; grailctl driver ls lists what there is")
	}
	return list, nil
}

// parseNetRef reads DRIVER/PORT.
func parseNetRef(s string) (api.NetRef, error) {
	driver, port, ok := strings.Cut(s, "/")
	if !ok || driver == "" || port == "" {
		return api.NetRef{}, fmt.Errorf("--net %q is not of the form DRIVER/PORT; grailctl driver ls lists what there is", s)
	}
	return api.NetRef{Driver: driver, Port: port}, nil
}

func (c *cli) attachCommand() *cobra.Command {
	var f deviceFlags
	cmd := &cobra.Command{
		Use: "attach NAME --disk DRIVER/DISK[:ro]... | --net DRIVER/PORT...", GroupID: "vm", Short: "Give a VM one more disk or network card",
		Long: `attach gives a VM disks and network cards of driver VMs, and the VM keeps them when it is stopped and started again. A Linux VM that runs gets
them at once: what it calls each is printed, and a network card is set up in it. It takes four such devices more than it was started with.
A native VM has to be stopped for it.`,
		Example: `  grailctl attach web --disk blk0/data
  grailctl attach web --net net0/backup
  grailctl exec web -- mount /dev/vdb /mnt`,
		Args: exactly("the NAME of a VM"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.eachDevice(cmd.Context(), &f, func(ctx context.Context, client *api.Client, dev api.Device) (api.Attached, error) {
				return client.Attach(ctx, args[0], dev)
			})
		},
	}
	f.add(cmd, "attach")
	return cmd
}

func (c *cli) detachCommand() *cobra.Command {
	var f deviceFlags
	cmd := &cobra.Command{
		Use: "detach NAME --disk DRIVER/DISK... | --net DRIVER/PORT...", GroupID: "vm", Short: "Take a disk or a network card away from a VM",
		Long: `detach takes disks and network cards away from a VM, for good. A Linux VM that runs loses them at once, but a disk that is mounted, open or
otherwise in use in the guest stays where it is, and the command says what uses it. What was written to a disk is on it when detach
returns. A native VM has to be stopped for it.`,
		Example: `  grailctl exec web -- umount /mnt
  grailctl detach web --disk blk0/data
  grailctl detach web --net net0/backup`,
		Args: exactly("the NAME of a VM"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.eachDevice(cmd.Context(), &f, func(ctx context.Context, client *api.Client, dev api.Device) (api.Attached, error) {
				return api.Attached{Device: dev}, client.Detach(ctx, args[0], dev)
			})
		},
	}
	f.add(cmd, "detach")
	return cmd
}

// eachDevice does something for every device, prints those for which it was done, and goes on after an error.
func (c *cli) eachDevice(ctx context.Context, f *deviceFlags, do func(context.Context, *api.Client, api.Device) (api.Attached, error)) error {
	devices, err := f.devices()
	if err != nil {
		return err
	}
	client, _, err := c.connect(ctx)
	if err != nil {
		return err
	}
	var errs []error
	done := []api.Attached{}
	for _, dev := range devices {
		a, err := do(ctx, client, dev)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, a)
		if !c.json {
			fmt.Fprintln(c.stdout, strings.TrimSpace(dev.String()+" "+a.Guest))
		}
	}
	if c.json {
		errs = append(errs, c.print(done))
	}
	return errors.Join(errs...)
}

// completeDevices offers the disks and ports of drivers for --disk and --net, if a graild runs.
func completeDevices(cmd *cobra.Command) {
	offer := func(names func(api.Driver) []string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return func(cmd *cobra.Command, _ []string, _ string) (list []string, _ cobra.ShellCompDirective) {
			client, _, err := running(cmd.Context())
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			drivers, _ := client.Drivers(cmd.Context())
			for _, d := range drivers {
				for _, name := range names(d) {
					list = append(list, d.Name+"/"+name)
				}
			}
			return list, cobra.ShellCompDirectiveNoFileComp
		}
	}
	disks := func(d api.Driver) (names []string) {
		for _, k := range d.Disks {
			if k.ReadOnly {
				k.ID += ":ro"
			}
			names = append(names, k.ID)
		}
		return names
	}
	ports := func(d api.Driver) (names []string) {
		for _, p := range d.Ports {
			names = append(names, p.Name)
		}
		return names
	}
	for flag, names := range map[string]func(api.Driver) []string{"disk": disks, "root": disks, "net": ports} {
		if cmd.Flags().Lookup(flag) != nil {
			// It fails for a flag that is not there or has one already.
			_ = cmd.RegisterFlagCompletionFunc(flag, offer(names))
		}
	}
}
