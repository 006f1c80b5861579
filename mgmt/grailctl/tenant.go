package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
)

func (c *cli) tenantCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "tenant", GroupID: "host", Short: "Divide the host among tenants",
		Long: `A tenant owns a part of the host and divides it among its VMs, its drivers and its sub-tenants, which are named TENANT/NAME. It can give away
what it owns and no more: a guarantee that cannot be kept is refused, with the sum that shows why. A VM holds its part while it runs, a driver
and a tenant until they are removed.

CPU: a guarantee is delivered whenever the tenant can use it. What nobody who runs is guaranteed is divided by weight. A cap is never exceeded.`,
	})
	cmd.AddCommand(c.tenantCreateCommand(), c.tenantSetCommand(), c.tenantLsCommand(), c.tenantShowCommand(), c.tenantRmCommand())
	return cmd
}

func (c *cli) tenantCreateCommand() *cobra.Command {
	var f shareFlags
	cmd := &cobra.Command{
		Use: "create TENANT [flags]", Short: "Make a tenant, or a sub-tenant of one that there is",
		Example: `  grailctl tenant create acme --cpu-guarantee 1 --memory-reserved 2G --vms 20
  grailctl tenant create acme/web --cpu-guarantee 0.5 --cpu 1 --cpu-weight 300
  grailctl run --tenant acme/web --cpu-guarantee 0.25 -- ./server`,
		Args: exactly("the path of a TENANT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := f.share()
			if err != nil {
				return err
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := client.CreateTenant(cmd.Context(), api.CreateTenant{Path: args[0], Share: s})
			if err != nil {
				return err
			}
			return c.tenantDone(list)
		},
	}
	f.addTenant(cmd)
	return cmd
}

// tenantDone says which tenant a command has worked on.
func (c *cli) tenantDone(list []api.Domain) error {
	if c.json {
		return c.print(list[0])
	}
	fmt.Fprintln(c.stdout, domainName(list[0]))
	return nil
}

func (c *cli) tenantSetCommand() *cobra.Command {
	var f shareFlags
	var ownCPU, ownMemory string
	cmd := &cobra.Command{
		Use: "set TENANT [flags]", Short: "Change what a tenant owns, also for VMs that run", ValidArgsFunction: completeTenants,
		Long: `set changes what the flags name; the rest stays. VMs that run have it at once. Less than what is in use below the tenant is refused.
The tenant / is the host: its guarantees are what Grail may give away, --own-cpu and --own-memory what the host needs for itself.`,
		Example: `  grailctl tenant set acme --cpu-guarantee 1.5 --cpu 0
  grailctl tenant set acme --device blk0:ops=2000-8000,weight=300
  grailctl tenant set / --own-cpu 0.2 --own-memory 1G
  grailctl tenant set / --device blk0:ops=20000,bytes=500M`,
		Args: exactly("the path of a TENANT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			patch, err := f.patch()
			if err != nil {
				return err
			}
			own := shareFlags{cmd: ownFlags(cmd, ownCPU, ownMemory)}
			own.guarantee, own.reserved = ownCPU, ownMemory
			needs, err := own.patch()
			if err != nil {
				return errors.New(strings.NewReplacer("--cpu-guarantee", "--own-cpu", "--memory-reserved", "--own-memory").Replace(err.Error()))
			}
			if patch == nil && needs == nil {
				return fmt.Errorf("nothing to change; see %s --help", cmd.CommandPath())
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := client.SetTenant(cmd.Context(), args[0], api.SetShare{Share: patch, Own: needs})
			if err != nil {
				return err
			}
			return c.tenantDone(list)
		},
	}
	f.addTenant(cmd)
	cmd.Flags().StringVar(&ownCPU, "own-cpu", "", "of /: cores that the host needs for itself (default: 5 % of what it has)")
	cmd.Flags().StringVar(&ownMemory, "own-memory", "", "of /: memory that the host needs for itself (default: 5 %, at most 1G)")
	return cmd
}

// ownFlags returns a command whose flags say of the host's own needs what they say of a share.
func ownFlags(cmd *cobra.Command, cpu, memory string) *cobra.Command {
	o := &cobra.Command{}
	(&shareFlags{}).addVM(o)
	for from, to := range map[string]string{"own-cpu": "cpu-guarantee", "own-memory": "memory-reserved"} {
		if cmd.Flags().Changed(from) {
			_ = o.Flags().Set(to, map[string]string{"own-cpu": cpu, "own-memory": memory}[from])
		}
	}
	return o
}

func (c *cli) tenantLsCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls", Short: "List the tenants, and what each owns and has given away", Args: exactly(),
		Example: "  grailctl tenant ls\n  grailctl tenant ls --all --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.tenants(cmd, "")
			if err != nil {
				return err
			}
			if !all {
				var some []api.Domain
				for _, n := range list {
					if n.Kind != tenant.VM && n.Kind != tenant.Driver {
						some = append(some, n)
					}
				}
				list = some
			}
			if c.json {
				return c.print(list)
			}
			return c.domainTable(list)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also the VMs that run, and the drivers")
	return cmd
}

func (c *cli) tenants(cmd *cobra.Command, path string) (list []api.Domain, err error) {
	return list, c.retry(cmd.Context(), func(client *api.Client) (err error) {
		list, err = client.Tenant(cmd.Context(), path)
		return err
	})
}

func (c *cli) tenantShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show TENANT", Short: "Show what a tenant owns, who holds it, and what is free", ValidArgsFunction: completeTenants,
		Example: "  grailctl tenant show acme\n  grailctl tenant show /",
		Args:    exactly("the path of a TENANT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := c.tenants(cmd, args[0])
			if err != nil {
				return err
			}
			if c.json {
				return c.print(list)
			}
			c.showTenant(list)
			return nil
		},
	}
}

func (c *cli) tenantRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm TENANT", Short: "Forget a tenant that has no VMs, drivers and sub-tenants", ValidArgsFunction: completeTenants,
		Example: "  grailctl tenant rm acme/web",
		Args:    exactly("the path of a TENANT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			if err := client.RemoveTenant(cmd.Context(), args[0]); err != nil {
				return err
			}
			if c.json {
				return c.print(args)
			}
			fmt.Fprintln(c.stdout, args[0])
			return nil
		},
	}
}

// domainName returns how a person names a node.
func domainName(n api.Domain) string {
	switch n.Kind {
	case tenant.Host:
		return "/"
	case tenant.Own:
		return "(host's own needs)"
	}
	return n.Name
}

func (c *cli) domainTable(list []api.Domain) error {
	return c.table("DOMAIN\tKIND\tCPU\tFREE\tCAP\tWEIGHT\tDUE NOW\tMEMORY\tFREE\tLIMIT\tVMS\tTHREADS", func(w io.Writer) {
		for _, n := range list {
			s := n.Share
			parent := n.Kind == tenant.Tenant || n.Kind == tenant.Host
			free := func(r tenant.Resource, owned int64) string {
				if !parent {
					return "-"
				}
				return r.Format(owned - n.Held[string(r)])
			}
			due := "-"
			if n.Live {
				due = bare(n.Due)
			}
			weight := s.CPU.Weight
			if weight == 0 {
				weight = tenant.DefaultWeight
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", domainName(n), string(n.Kind), bare(s.CPU.Guarantee),
				strings.TrimSuffix(strings.TrimSuffix(free(tenant.CPUTime, int64(s.CPU.Guarantee)), " cores"), " core"), capText(s.CPU.Cap), weight, due,
				tenant.MemoryBytes.Format(s.Memory.Reserved), free(tenant.MemoryBytes, s.Memory.Reserved), limitText(s.Memory.Limit),
				countText(n, tenant.VMCount, s.VMs), countText(n, tenant.ThreadCount, s.Threads))
		}
	})
}

// bare writes cores without the unit.
func bare(m tenant.Milli) string {
	return strings.TrimSuffix(strings.TrimSuffix(m.String(), " cores"), " core")
}

func capText(m tenant.Milli) string {
	if m == 0 {
		return "-"
	}
	return bare(m)
}

func limitText(n int64) string {
	if n == 0 {
		return "-"
	}
	return size.Format(uint64(n))
}

// countText writes how much of a count is used, of how much.
func countText(n api.Domain, r tenant.Resource, bound int64) string {
	if n.Kind != tenant.Tenant && n.Kind != tenant.Host {
		return limitText(bound)
	}
	if bound == 0 {
		return fmt.Sprint(n.Held[string(r)])
	}
	return fmt.Sprintf("%d of %d", n.Held[string(r)], bound)
}

func (c *cli) showTenant(list []api.Domain) {
	w, n := c.stdout, list[0]
	s := n.Share
	field(w, "tenant", domainName(n))
	field(w, "created", stamp(n.Created))
	line := func(name string, r tenant.Resource, owned int64, more string) {
		held := n.Held[string(r)]
		if owned == 0 && held == 0 && more == "" {
			return
		}
		text := fmt.Sprintf("%s, of which %s held and %s free", r.Format(owned), r.Format(held), r.Format(owned-held))
		if owned == 0 {
			text = r.Format(held) + ", no bound"
		}
		field(w, name, text+more)
	}
	more := ""
	if s.CPU.Cap > 0 {
		more += fmt.Sprintf("; cap %v", s.CPU.Cap)
	}
	if s.CPU.Weight > 0 {
		more += fmt.Sprintf("; weight %d", s.CPU.Weight)
	}
	if s.CPU.Set != "" {
		more += "; on processors " + s.CPU.Set
	}
	line("cpu", tenant.CPUTime, int64(s.CPU.Guarantee), more)
	more = ""
	if s.Memory.Limit > 0 {
		more = "; limit " + size.Format(uint64(s.Memory.Limit))
	}
	line("memory", tenant.MemoryBytes, s.Memory.Reserved, more)
	line("VMs", tenant.VMCount, s.VMs, "")
	line("threads", tenant.ThreadCount, s.Threads, "")
	for _, d := range deviceLines(n) {
		field(w, "device", d)
	}
	if n.Live {
		field(w, "due now", n.Due.String())
	}
	if n.CPU != nil {
		field(w, "used", fmt.Sprintf("%.3f s of processor time, %.3f s held up by its cap", float64(n.CPU.UsedNs)/1e9, float64(n.CPU.ThrottledNs)/1e9))
	}
	for _, note := range n.Notes {
		field(w, "note", note)
	}
	for _, k := range list[1:] {
		if k.Parent != n.Name || k.Kind == tenant.Host {
			continue
		}
		holds := []string{}
		if k.Share.CPU.Guarantee > 0 {
			holds = append(holds, k.Share.CPU.Guarantee.String())
		}
		if k.Share.Memory.Reserved > 0 {
			holds = append(holds, tenant.MemoryBytes.Format(k.Share.Memory.Reserved))
		}
		if len(holds) == 0 {
			holds = append(holds, "nothing reserved")
		}
		who := k.Kind.String() + " " + k.Name
		if k.Kind == tenant.Own {
			who = k.Kind.String()
		}
		field(w, "holder", who+": "+strings.Join(holds, ", "))
	}
}

// deviceLines describes a domain's shares in drivers.
func deviceLines(n api.Domain) (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(n.Share.Devices)) {
		d := n.Share.Devices[name]
		var parts []string
		for _, r := range []struct {
			name string
			tenant.Rate
		}{{"ops", d.Ops}, {"bytes", d.Bytes}, {"packets", d.Packets}} {
			if r.Rate == (tenant.Rate{}) {
				continue
			}
			text := fmt.Sprintf("%s %d/s guaranteed, %d held", r.name, r.Guarantee, n.Held[name+":"+r.name])
			if r.Cap > 0 {
				text += fmt.Sprintf(", cap %d", r.Cap)
			}
			if r.Weight > 0 {
				text += fmt.Sprintf(", weight %d", r.Weight)
			}
			parts = append(parts, text)
		}
		if d.CPU > 0 {
			parts = append(parts, fmt.Sprintf("%v of the CPU guarantee for its work", d.CPU))
		}
		lines = append(lines, name+": "+strings.Join(parts, "; "))
	}
	return lines
}

// completeTenants offers the paths of tenants, if a graild runs.
func completeTenants(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, _, err := running(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := client.Tenants(cmd.Context())
	var names []string
	for _, n := range list {
		if n.Kind == tenant.Tenant {
			names = append(names, n.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
