package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
)

// reclaimCommand takes memory back from a VM.
func (c *cli) reclaimCommand() *cobra.Command {
	var keep string
	var by time.Duration
	var all bool
	cmd := &cobra.Command{
		Use: "reclaim NAME [SIZE] [flags]", GroupID: "vm", Short: "Take memory back from a VM that runs, or give it back to it",
		Long: `reclaim takes SIZE of what a VM uses back, and lets it use that much less from then on. What is reserved for it (--memory-reserved) is never taken.

The guest is told how much it may keep and by when, and chooses what it gives: a Linux guest by its balloon, a native one by guest.OnReclaim. What it has not given in time is
taken by force. From a native VM on engine kvm: first what it has marked with MADV_COLD, then the mappings that hold most; it can ask what it lost, and ends only if it uses that and
cannot bear it. Other VMs that did not give end then, with cause memory.`,
		Example: `  grailctl reclaim web 64M
  grailctl reclaim web 1G --by 30s
  grailctl reclaim web --to 128M
  grailctl reclaim web --all`,
		Args: cobra.ArbitraryArgs, ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeVMs(cmd, args, prefix)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.ReclaimVM{All: all, WithinMs: by.Milliseconds()}
			ways := 0
			var err error
			if len(args) == 2 {
				ways++
				if req.Take, err = size.Parse(args[1]); err != nil {
					return err
				}
			}
			if keep != "" {
				ways++
				if req.Keep, err = size.Parse(keep); err != nil {
					return fmt.Errorf("--to: %w", err)
				}
			}
			if all {
				ways++
			}
			switch {
			case len(args) < 1 || len(args) > 2 || ways != 1:
				return errors.New("reclaim needs the NAME of a VM and one of SIZE, --to SIZE and --all; see " + cmd.CommandPath() + " --help")
			case len(args) == 2 && req.Take == 0, keep != "" && req.Keep == 0:
				return errors.New("the size is 0; give an amount such as 64M, or --all to let the VM use all its memory again")
			case by < 0 || by.Milliseconds() > hv.MaxReclaimMs:
				return fmt.Errorf("--by %v cannot be; give between 0 and %v", by, hv.MaxReclaimMs*time.Millisecond)
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			out, err := client.ReclaimVM(cmd.Context(), args[0], req)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(out)
			}
			fmt.Fprintln(c.stdout, reclaimed(&out))
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&keep, "to", "", "how much the VM may keep, in place of how much is taken")
	fl.DurationVar(&by, "by", api.DefaultReclaimMs*time.Millisecond, "how long the guest has to give it back before that is taken by force")
	fl.BoolVar(&all, "all", false, "let the VM use all its memory again")
	return cmd
}

// reclaimed says what came of it.
func reclaimed(r *api.ReclaimedVM) string {
	amount := func(n uint64) string { return tenant.MemoryBytes.Format(int64(n)) }
	if r.Ended {
		return fmt.Sprintf("%s ended: %s", r.Name, r.Message)
	}
	var parts []string
	if r.Given > 0 {
		parts = append(parts, "gave "+amount(r.Given))
	}
	if r.Taken > 0 {
		parts = append(parts, "lost "+amount(r.Taken)+" by force")
	}
	if len(parts) == 0 {
		parts = append(parts, "had nothing to give")
	}
	if r.Superseded {
		parts = append(parts, "was then told otherwise")
	}
	return fmt.Sprintf("%s %s in %.0f ms; it uses %s and may use %s", r.Name, strings.Join(parts, ", "), r.Ms, amount(r.After), amount(r.Bound))
}
