package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
)

func (c *cli) crashCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "crash", GroupID: "driver", Short: "Look into crashes of driver VMs",
		Long: "A crash record is kept of each end of a driver VM that nobody asked for, and of each that grailctl driver crash caused.",
	})
	cmd.AddCommand(c.crashLsCommand(), c.crashShowCommand())
	return cmd
}

// crashList asks for the crash records of a driver, or of all.
func (c *cli) crashList(cmd *cobra.Command, driver string) (list []api.Crash, err error) {
	err = c.retry(cmd.Context(), func(client *api.Client) (err error) {
		list, err = client.Crashes(cmd.Context(), driver)
		return err
	})
	return list, err
}

func (c *cli) crashLsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls [DRIVER]", Short: "List crashes, one a line", ValidArgsFunction: completeDrivers, Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.crashList(cmd, strings.Join(args, ""))
			if err != nil {
				return err
			}
			if c.json {
				return c.print(list)
			}
			return c.table("ID\tWHEN\tDRIVER\tCAUSE\tINJECTED\tSPARE\tRECOVERED IN\tWHY", func(w io.Writer) {
				for _, r := range list {
					took := "-"
					if r.RecoverMs > 0 {
						took = fmt.Sprintf("%.1f ms", r.RecoverMs)
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%t\t%s\t%s\n", r.ID, stamp(r.Crashed), whose(r), r.Cause, dash(r.Injected), r.Spare, took, r.Message)
				}
			})
		},
	}
}

// whose names what died.
func whose(r api.Crash) string {
	if r.OfSpare {
		return r.Driver + " (spare)"
	}
	return r.Driver
}

func (c *cli) crashShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one crash: cause, registers, instruction, stack, rings, console, and each step of the recovery",
		Args: exactly("the ID of a crash, from grailctl crash ls"), ValidArgsFunction: c.completeCrashes,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return fmt.Errorf("%q is no ID of a crash; grailctl crash ls lists them", args[0])
			}
			list, err := c.crashList(cmd, "")
			if err != nil {
				return err
			}
			i := slices.IndexFunc(list, func(r api.Crash) bool { return r.ID == id })
			if i < 0 {
				return fmt.Errorf("there is no crash %d; grailctl crash ls lists those that there are", id)
			}
			if c.json {
				return c.print(list[i])
			}
			showCrash(c.stdout, list[i])
			showPhases(c.stdout, list[i])
			return c.showRings(list[i].Rings)
		},
	}
}

// showPhases prints how the time of a recovery was spent.
func showPhases(w io.Writer, r api.Crash) {
	last := r.Attached
	if !r.First.IsZero() {
		last = r.First
	}
	if last.IsZero() || r.Stopped.IsZero() || r.Ready.IsZero() {
		return
	}
	ms := func(from, to int64) float64 { return float64(to-from) / 1e6 }
	fmt.Fprintf(w, "  phases     detect %.1f ms, stop %.1f ms, start %.1f ms, replay %.1f ms\n",
		ms(r.Crashed.UnixNano(), r.Detected.UnixNano()), ms(r.Detected.UnixNano(), r.Stopped.UnixNano()),
		ms(r.Stopped.UnixNano(), r.Ready.UnixNano()), ms(r.Ready.UnixNano(), last.UnixNano()))
}

func (c *cli) showRings(rings []api.Ring) error {
	if len(rings) == 0 {
		return nil
	}
	err := c.table("CLIENT\tDISK OR PORT\tQUEUE\tSIZE\tAVAIL\tUSED\tWAITING\tIN FLIGHT", func(w io.Writer) {
		for _, r := range rings {
			flight := "no log"
			if r.Inflight >= 0 {
				flight = strconv.Itoa(r.Inflight)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", r.Client, r.Disk, r.Queue, r.Size, r.Avail, r.Used, r.Avail-r.Used, flight)
		}
	})
	if err != nil || !slices.ContainsFunc(rings, func(r api.Ring) bool { return len(r.Requests) > 0 }) {
		return err
	}
	fmt.Fprintln(c.stdout, "in flight, oldest first:")
	return c.table("CLIENT\tDISK OR PORT\tQUEUE\tHEAD\tREQUEST\tBYTES\tAT", func(w io.Writer) {
		for _, r := range rings {
			for _, q := range r.Requests {
				at := "-"
				if q.What == "read" || q.What == "write" {
					at = strconv.FormatUint(q.Offset, 10)
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%d\t%s\n", r.Client, r.Disk, r.Queue, q.Head, q.What, q.Bytes, at)
			}
		}
	})
}

// completeCrashes offers the IDs of crashes, if a graild runs.
func (c *cli) completeCrashes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := running(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := client.Crashes(cmd.Context(), "")
	var ids []string
	for _, r := range list {
		ids = append(ids, fmt.Sprintf("%d\t%s: %s", r.ID, r.Driver, r.Message))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
