package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

func (c *cli) stopCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "stop NAME...", GroupID: "vm", Short: "End VMs: SIGTERM first, then by force",
		Args: atLeastOne("the NAME of a VM"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), args, func(ctx context.Context, client *api.Client, name string) error {
				_, err := client.StopVM(ctx, name, api.StopVM{GraceMs: int(grace.Milliseconds())})
				return err
			})
		},
	}
	cmd.Flags().DurationVarP(&grace, "time", "t", 10*time.Second, "how long the guest may take after SIGTERM; 0 ends it at once")
	return cmd
}

func (c *cli) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", GroupID: "vm", Short: "Forget VMs, with their logs",
		Args: atLeastOne("the NAME of a VM"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), args, func(ctx context.Context, client *api.Client, name string) error {
				return client.RemoveVM(ctx, name, force)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also one that runs")
	return cmd
}

// each does something for every name, prints the names that it was done for, and goes on after an error.
func (c *cli) each(ctx context.Context, names []string, do func(context.Context, *api.Client, string) error) error {
	client, _, err := c.connect(ctx)
	if err != nil {
		return err
	}
	var errs []error
	done := []string{}
	for _, n := range names {
		if err := do(ctx, client, n); err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, n)
		if !c.json {
			fmt.Fprintln(c.stdout, n)
		}
	}
	if c.json {
		errs = append(errs, c.print(done))
	}
	return errors.Join(errs...)
}

func (c *cli) psCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ps", GroupID: "vm", Short: "List the VMs that run", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var vms []api.VM
			err := c.retry(cmd.Context(), func(client *api.Client) (err error) {
				vms, err = client.VMs(cmd.Context())
				return err
			})
			if err != nil {
				return err
			}
			list := []api.VM{}
			for _, v := range vms {
				if all || v.State.Live() {
					list = append(list, v)
				}
			}
			if c.json {
				return c.print(list)
			}
			return c.table("NAME\tSTATE\tENGINE\tMEMORY\tCPU\tDISKS\tPUBLISHED\tSINCE\tPROGRAM", func(w io.Writer) {
				for _, v := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, stateOf(v), dash(string(v.EngineUsed)), size.Format(v.MemoryBytes),
						capOf(v.CPU), dash(disksOf(v.Disks)), dash(publishedOf(v.Publish)), since(v), strings.Join(append([]string{v.Program}, v.Args...), " "))
				}
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	return cmd
}

// table prints columns.
func (c *cli) table(header string, rows func(io.Writer)) error {
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, header)
	rows(w)
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func capOf(cpu float64) string {
	if cpu == 0 {
		return "-"
	}
	return fmt.Sprintf("%g", cpu)
}

func stateOf(v api.VM) string {
	r := v.Report
	if v.State != api.Exited || r == nil {
		return string(v.State)
	}
	switch r.Cause {
	case hv.CauseExit:
		return fmt.Sprintf("exited %d", r.Code)
	case hv.CauseSignal:
		return fmt.Sprintf("signal %d", r.Signal)
	}
	return string(r.Cause)
}

func disksOf(refs []api.DiskRef) string {
	var s []string
	for _, r := range refs {
		t := r.Driver + "/" + r.Disk
		if r.ReadOnly {
			t += ":ro"
		}
		s = append(s, t)
	}
	return strings.Join(s, ",")
}

func portsOf(refs []api.NetRef) string {
	var s []string
	for _, r := range refs {
		s = append(s, r.Driver+"/"+r.Port)
	}
	return strings.Join(s, ",")
}

func publishedOf(list []api.Publish) string {
	var s []string
	for _, p := range list {
		s = append(s, p.String())
	}
	return strings.Join(s, ",")
}

func since(v api.VM) string {
	switch {
	case v.State.Live():
		return ago(v.Started)
	case v.State == api.Exited:
		return ago(v.Ended)
	}
	return ago(v.Created)
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := time.Since(t); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// completeVMs offers the names of VMs, if a graild runs.
func completeVMs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := running(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	vms, _ := client.VMs(cmd.Context())
	var names []string
	for _, v := range vms {
		names = append(names, v.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
