package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
)

func (c *cli) injectCommand() *cobra.Command {
	var seed uint64
	var set []string
	var list bool
	cmd := &cobra.Command{
		Use: "inject NAME KIND [--seed N] [--set OPTION=VALUE]...", GroupID: "driver", Short: "Make a fault in a driver VM or a native VM, to see it survive",
		Long: `inject makes one fault in the driver VM or native VM NAME, and prints what it did. All that is random about it follows from --seed: the
same seed in the same situation makes the same fault. A driver that dies of it is replaced as after any crash; its crash record says what was injected.

--list shows the faults and their options. Those marked "may be silent" change memory or registers in which nothing checks: a program may go on and
compute wrongly. All others are found out, or are reported to the clients as errors.`,
		Example: `  grailctl inject --list
  grailctl inject blk0 hang:loop
  grailctl inject blk0 kill --json
  grailctl crash ls blk0                            # what came of it`,
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return exactly()(cmd, args)
			}
			return exactly("the NAME of a driver or VM", "a KIND of fault")(cmd, args)
		},
		ValidArgsFunction: c.completeInject,
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				return c.listFaults()
			}
			req := api.Inject{Kind: args[1], Seed: seed}
			if !cmd.Flags().Changed("seed") {
				req.Seed = rand.Uint64()
			}
			for _, s := range set {
				k, v, ok := strings.Cut(s, "=")
				if !ok || k == "" {
					return fmt.Errorf("--set %q is not of the form OPTION=VALUE", s)
				}
				if req.Set == nil {
					req.Set = map[string]string{}
				}
				req.Set[k] = v
			}
			if _, err := req.Check(); err != nil {
				return err
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			done, err := client.InjectDriver(cmd.Context(), args[0], req)
			if api.KindOf(err) == api.NotFound {
				var vmErr error
				if done, vmErr = client.InjectVM(cmd.Context(), args[0], req); api.KindOf(vmErr) != api.NotFound || vmErr == nil {
					err = vmErr
				} else {
					err = errors.New("there is no driver or VM " + args[0])
				}
			}
			if err != nil {
				return err
			}
			if c.json {
				return c.print(done)
			}
			fmt.Fprintf(c.stdout, "%s: %s (seed %d)\n", done.Target, done.What, done.Seed)
			return nil
		},
	}
	cmd.Flags().Uint64Var(&seed, "seed", 0, "decides all that is random (default: another one each time; it is printed)")
	cmd.Flags().StringArrayVar(&set, "set", nil, "an option of the fault, OPTION=VALUE (repeatable; see --list)")
	cmd.Flags().BoolVar(&list, "list", false, "list the faults that can be injected, and their options")
	return cmd
}

// listFaults shows all kinds of fault.
func (c *cli) listFaults() error {
	if c.json {
		return c.print(api.FaultKinds)
	}
	return c.table("FAULT\tWHAT IT DOES", func(w io.Writer) {
		for _, k := range api.FaultKinds {
			fmt.Fprintf(w, "%s\t%s\n", k.Name, faultLine(&k))
			for _, o := range k.Options {
				fmt.Fprintf(w, "\t  %s: %s (default: %s)\n", o.Name, o.Meaning, o.Default)
			}
		}
	})
}

// faultLine describes a fault in one line.
func faultLine(k *api.FaultKind) string {
	s := k.Summary
	if k.Silent {
		s += "; may be silent"
	}
	for _, e := range k.Engines {
		s += fmt.Sprintf("; engine %s only", e)
	}
	if len(k.Drivers) > 0 {
		s += "; drivers of type " + strings.Join(k.Drivers, ", ") + " only"
	}
	if k.VM {
		s += "; also in native VMs"
	}
	return s
}

// completeInject offers names of drivers and VMs, then kinds of fault.
func (c *cli) completeInject(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		names, directive := completeDrivers(cmd, args, "")
		vms, _ := completeVMs(cmd, args, "")
		return append(names, vms...), directive
	case 1:
		var kinds []string
		for _, k := range api.FaultKinds {
			kinds = append(kinds, k.Name+"\t"+k.Summary)
		}
		return kinds, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
