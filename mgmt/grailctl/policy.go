package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/grailos/grail/mgmt/api"
)

// policyFlags say how a driver's death is found out and dealt with.
type policyFlags struct {
	spares              int
	heartbeat, deadline time.Duration
	policy              string
}

func (p *policyFlags) add(fl *pflag.FlagSet) {
	fl.IntVar(&p.spares, "spares", 1, "how many next instances are kept booted, 0 to 4, so that a recovery takes less time; each takes the driver's memory again")
	fl.DurationVar(&p.heartbeat, "heartbeat", 0, "how long the driver may be silent with work pending (default 50ms; console: 200ms)")
	fl.DurationVar(&p.deadline, "deadline", 2*time.Second, "how long a driver that is not silent may leave a request lying")
	fl.StringVar(&p.policy, "policy", "stall", "what clients see of a driver that does not serve: stall, they wait; or fail[:AFTER], after that time (default: 30s) disks answer with I/O errors and networks drop, until it serves again")
}

// given returns what was given on the command line.
func (p *policyFlags) given(fl *pflag.FlagSet) (s api.SetDriver, err error) {
	ms := func(name string, d time.Duration) *int {
		if !fl.Changed(name) {
			return nil
		}
		if d < time.Millisecond {
			err = errors.Join(err, fmt.Errorf("--%s %v is too short", name, d))
		}
		return new(int(d.Milliseconds()))
	}
	s.HeartbeatMs, s.DeadlineMs = ms("heartbeat", p.heartbeat), ms("deadline", p.deadline)
	if fl.Changed("spares") {
		s.Spares = &p.spares
	}
	if fl.Changed("policy") {
		name, after, timed := strings.Cut(p.policy, ":")
		s.Policy = new(api.Policy(name))
		if timed {
			d, perr := time.ParseDuration(after)
			if perr != nil || d < time.Millisecond || name != string(api.PolicyFail) {
				return s, fmt.Errorf("--policy %q is neither stall nor fail nor fail:AFTER with a time such as 10s", p.policy)
			}
			s.FailAfterMs = new(int(d.Milliseconds()))
		}
	}
	return s, err
}

// into puts what was given into the configuration of a new driver.
func (p *policyFlags) into(c *api.DriverConfig, fl *pflag.FlagSet) error {
	s, err := p.given(fl)
	if err != nil {
		return err
	}
	put := func(to, v *int) {
		if v != nil {
			*to = *v
		}
	}
	put(&c.HeartbeatMs, s.HeartbeatMs)
	put(&c.DeadlineMs, s.DeadlineMs)
	put(&c.FailAfterMs, s.FailAfterMs)
	c.Spares = s.Spares
	if s.Policy != nil {
		c.Policy = *s.Policy
	}
	return nil
}

func (c *cli) driverSetCommand() *cobra.Command {
	var p policyFlags
	cmd := &cobra.Command{
		Use: "set NAME [--spares N] [--heartbeat TIME] [--deadline TIME] [--policy stall|fail[:AFTER]]", Short: "Change how a driver VM's death is found out and dealt with",
		Long: `set changes a driver while it runs and has clients. What is not given stays as it is. It is kept: later instances, and the next graild, know it.`,
		Example: `  grailctl driver set blk0 --spares 2
  grailctl driver set blk0 --policy fail:10s     # I/O errors rather than a long wait
  grailctl driver set blk0 --policy stall        # the default
  grailctl driver set net0 --heartbeat 200ms --deadline 5s`,
		ValidArgsFunction: completeDrivers, Args: exactly("the NAME of a driver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := p.given(cmd.Flags())
			if err != nil {
				return err
			}
			if s == (api.SetDriver{}) {
				return errors.New("nothing to change; give --spares, --heartbeat, --deadline or --policy")
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			d, err := client.SetDriver(cmd.Context(), args[0], s)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(d)
			}
			fmt.Fprintf(c.stdout, "%s: %s\n", d.Name, policyLine(d))
			return nil
		},
	}
	p.add(cmd.Flags())
	completePolicy(cmd)
	return cmd
}

func completePolicy(cmd *cobra.Command) {
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions([]string{"stall", "fail", "fail:10s"}, cobra.ShellCompDirectiveNoFileComp))
}

// policyLine says in one line what the policy of a driver is.
func policyLine(d api.Driver) string {
	policy := string(d.Policy)
	if d.Policy == api.PolicyFail {
		policy = fmt.Sprintf("fail after %v", time.Duration(d.FailAfterMs)*time.Millisecond)
	}
	return fmt.Sprintf("spares %s, heartbeat %v, deadline %v, policy %s", sparesOf(d), time.Duration(d.HeartbeatMs)*time.Millisecond,
		time.Duration(d.DeadlineMs)*time.Millisecond, policy)
}

// sparesOf says how many spares there are of how many that there are to be.
func sparesOf(d api.Driver) string {
	wanted := 0
	if d.Spares != nil {
		wanted = *d.Spares
	}
	return fmt.Sprintf("%d/%d", d.SparesUp, wanted)
}

// stateOfDriver says where a driver stands, and what that means for its clients.
func stateOfDriver(d api.Driver) string {
	if d.Failing {
		return string(d.State) + " (I/O fails)"
	}
	return string(d.State)
}
