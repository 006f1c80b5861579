package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

func (c *cli) driverShareCommand() *cobra.Command {
	var weight, iopsCap, iopsGuarantee uint64
	var bpsCap, bpsGuarantee string
	var groups []string
	var reset bool
	cmd := &cobra.Command{
		Use: "share NAME [CLIENT]", Short: "Say what a client of a driver VM gets beside the others, or show it",
		Long: `The driver serves its clients by cost, which is bytes and so many more for each operation: first what is guaranteed, then by
weight, and nobody beyond its cap. CLIENT is the name of a VM, or of a disk or port of the driver, or VM/DISK; it need not be there yet. What is not given
stays as it is. Of a client about which nothing was said, the weight is 100, and there are no guarantees and no caps. Operations (--iops-*) are
requests, and of a net driver the frames that the client sends; bytes (--bps-*) those of its reads and writes, and of its frames.

Clients of one --group share what the group gets; give one --group for each level, the outermost first. Changes hold at once, also for clients that are attached.
Of whom nothing is said here, what its VM and the tenants above it have of the driver holds (--device of grailctl set and grailctl tenant set); each tenant is a
group. Without CLIENT, what each gets is shown.`,
		Example: `  grailctl driver share blk0 web --weight 300
  grailctl driver share blk0 batch --bps-cap 50M --iops-cap 2000
  grailctl driver share blk0 db/data --iops-guarantee 5000
  grailctl driver share net0 web --bps-guarantee 20M --group acme:300
  grailctl driver share blk0 batch --reset
  grailctl driver share blk0`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("%s needs the NAME of a driver, and of a CLIENT if its share is to be changed; see %s --help", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: completeDriverClients,
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []api.DriverShare
			err := c.retry(cmd.Context(), func(client *api.Client) (err error) {
				list, err = client.DriverShares(cmd.Context(), args[0])
				return err
			})
			if err != nil {
				return err
			}
			fl := cmd.Flags()
			given := false
			for _, name := range []string{"weight", "iops-cap", "iops-guarantee", "bps-cap", "bps-guarantee", "group"} {
				given = given || fl.Changed(name)
			}
			if len(args) == 1 || !given && !reset {
				if given || reset {
					return errors.New("say of which CLIENT: a VM, a disk or port, or VM/DISK")
				}
				if len(args) == 2 {
					list = slices.DeleteFunc(list, func(s api.DriverShare) bool { return s.Client != args[1] })
				}
				return c.showShares(list)
			}
			if reset && given {
				return errors.New("--reset forgets all that was said of the client; give it alone")
			}
			s := api.DriverShare{Client: args[1]}
			if i := slices.IndexFunc(list, func(s api.DriverShare) bool { return s.Client == args[1] }); i >= 0 && !reset {
				s.Config.Limits = list[i].Config.Limits
				if !list[i].Attached {
					s.Config.Groups = list[i].Config.Groups
				}
			}
			l := &s.Config.Limits
			if fl.Changed("weight") {
				if weight < 1 || weight > share.MaxWeight {
					return fmt.Errorf("--weight %d cannot be; give 1 to %d", weight, share.MaxWeight)
				}
				l.Weight = uint32(weight)
			}
			for _, n := range []struct {
				name string
				from uint64
				to   *uint64
			}{{"iops-cap", iopsCap, &l.OpsCap}, {"iops-guarantee", iopsGuarantee, &l.OpsGuarantee}} {
				if fl.Changed(n.name) {
					*n.to = n.from
				}
			}
			for _, n := range []struct {
				name, from string
				to         *uint64
			}{{"bps-cap", bpsCap, &l.BytesCap}, {"bps-guarantee", bpsGuarantee, &l.BytesGuarantee}} {
				if !fl.Changed(n.name) {
					continue
				}
				if *n.to = 0; n.from == "0" {
					continue
				}
				if *n.to, err = size.Parse(n.from); err != nil {
					return fmt.Errorf("--%s: %w", n.name, err)
				}
			}
			if fl.Changed("group") {
				if s.Config.Groups, err = parseGroups(groups); err != nil {
					return err
				}
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			if err := client.SetDriverShare(cmd.Context(), args[0], s); err != nil {
				return err
			}
			if c.json {
				return c.print(s)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.Uint64Var(&weight, "weight", 0, "its part of what guarantees leave, beside its siblings', 1 to 10000 (default 100)")
	fl.Uint64Var(&iopsCap, "iops-cap", 0, "at most so many operations a second; 0: no cap")
	fl.Uint64Var(&iopsGuarantee, "iops-guarantee", 0, "so many operations a second before others get anything; 0: none")
	fl.StringVar(&bpsCap, "bps-cap", "", "at most so many bytes a second, such as 50M; 0: no cap")
	fl.StringVar(&bpsGuarantee, "bps-guarantee", "", "so many bytes a second before others get anything, such as 20M; 0: none")
	fl.StringArrayVar(&groups, "group", nil, "share what the group GROUP[:WEIGHT] gets with its other clients (repeatable, the outermost first; an empty one: no group)")
	fl.BoolVar(&reset, "reset", false, "forget what was said of the client")
	return cmd
}

// parseGroups reads GROUP[:WEIGHT] of each level.
func parseGroups(list []string) (groups []share.Group, err error) {
	for _, s := range list {
		if s == "" && len(list) == 1 {
			return nil, nil
		}
		name, weight, ok := strings.Cut(s, ":")
		g := share.Group{Name: name}
		if ok {
			n, err := strconv.ParseUint(weight, 10, 32)
			if err != nil || n < 1 || n > share.MaxWeight {
				return nil, fmt.Errorf("--group %q: the weight is no number from 1 to %d", s, share.MaxWeight)
			}
			g.Weight = uint32(n)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// completeDriverClients completes a driver, then what has a share of it or could have one.
func completeDriverClients(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeDrivers(cmd, args, toComplete)
	}
	client, _, err := running(cmd.Context())
	if err != nil || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	d, err := client.Driver(cmd.Context(), args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, k := range d.Disks {
		names = append(names, k.ID)
	}
	for _, p := range d.Ports {
		names = append(names, p.Name)
	}
	for _, b := range d.Clients {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) showShares(list []api.DriverShare) error {
	if c.json {
		return c.print(list)
	}
	number := func(n uint64) string {
		if n == 0 {
			return "-"
		}
		return strconv.FormatUint(n, 10)
	}
	bytes := func(n uint64) string {
		if n == 0 {
			return "-"
		}
		return size.Format(n)
	}
	return c.table("CLIENT\tWEIGHT\tIOPS CAP\tGUARANTEE\tBYTES/S CAP\tGUARANTEE\tGROUPS\tSAID OF", func(w io.Writer) {
		for _, s := range list {
			l := s.Config.Limits
			var groups []string
			for _, g := range s.Config.Groups {
				name := g.Name
				if g.Weight != 0 {
					name += ":" + strconv.FormatUint(uint64(g.Weight), 10)
				}
				groups = append(groups, name)
			}
			if l.Weight == 0 {
				l.Weight = share.DefaultWeight
			}
			of := "this driver"
			if s.Attached {
				of = "its VM and tenants"
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Client, l.Weight, number(l.OpsCap), number(l.OpsGuarantee), bytes(l.BytesCap), bytes(l.BytesGuarantee),
				dash(strings.Join(groups, " > ")), of)
		}
	})
}
