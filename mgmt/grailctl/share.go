package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
)

// shareFlags are the flags that say what a domain owns. What a flag was not given for is not touched.
type shareFlags struct {
	cmd                                               *cobra.Command
	guarantee, limit, set, reserved, memory, realTime string
	weight, vms, threads                              int64
	devices                                           []string
}

const deviceHelp = "share in a driver's work: DRIVER:KEY=[GUARANTEE][-CAP]... with the keys ops, bytes and packets (a second) and weight, and for a VM cpu=CORES of its CPU guarantee for the driver's work, such as blk0:ops=1000-5000,bytes=10M,weight=200 (repeatable)"

// addTenant adds the flags that a tenant has.
func (f *shareFlags) addTenant(cmd *cobra.Command) {
	f.addVM(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.limit, "cpu", "", "cap on processor use of all its VMs together, in cores; 0 for none")
	fl.StringVar(&f.memory, "memory", "", "bound of its VMs' memory together; 0 for none")
	fl.Int64Var(&f.vms, "vms", 0, "how many VMs may run; 0 for as many as the tenant above allows")
}

// addVM adds the flags that a VM has, beyond its caps.
func (f *shareFlags) addVM(cmd *cobra.Command) {
	f.cmd = cmd
	fl := cmd.Flags()
	fl.StringVar(&f.guarantee, "cpu-guarantee", "", "processor time in cores that is delivered whenever it can be used, for instance 0.5; refused where that cannot be kept")
	fl.Int64Var(&f.weight, "cpu-weight", tenant.DefaultWeight, "weight beside its siblings, 1 to 10000, for the processor time that nobody is guaranteed")
	fl.StringVar(&f.set, "cpuset", "", "processors to run on, such as 0-2,5; empty for all")
	fl.StringVar(&f.reserved, "memory-reserved", "", "memory that is reserved, and never taken away; a VM has it from its start on, or from when it is set; 0 for none")
	fl.Int64Var(&f.threads, "threads", 0, "how many threads there may be; 0 for as many as the tenant above allows, 256 for a native VM")
	fl.StringArrayVar(&f.devices, "device", nil, deviceHelp)
}

// addDriver adds the flags that a driver has.
func (f *shareFlags) addDriver(cmd *cobra.Command) {
	f.cmd = cmd
	fl := cmd.Flags()
	fl.StringVar(&f.guarantee, "cpu-guarantee", "", "processor time in cores that the driver has whenever it can use it (default 0.05)")
	fl.Int64Var(&f.weight, "cpu-weight", tenant.DefaultWeight, "weight beside its siblings, 1 to 10000, for the processor time that nobody is guaranteed")
	fl.StringVar(&f.set, "cpuset", "", "processors to run on, such as 0-2,5; empty for all")
}

// addRealTime adds the flag that a VM alone has.
func (f *shareFlags) addRealTime(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.realTime, "rt", "", "a real-time budget for the first thread of a native program: RUNTIME/PERIOD, such as 5ms/20ms; 0 for none")
}

// patch returns what the flags say, as the fields of a tenant.Share in JSON; nil if nothing.
func (f *shareFlags) patch() (json.RawMessage, error) {
	cpu, memory, share := map[string]any{}, map[string]any{}, map[string]any{}
	fl := f.cmd.Flags()
	cores := func(name, value, key string) error {
		if !fl.Changed(name) {
			return nil
		}
		m, err := tenant.ParseCores(value)
		if err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
		cpu[key] = m
		return nil
	}
	bytes := func(name, value, key string) error {
		if !fl.Changed(name) {
			return nil
		}
		n, err := size.Parse(value)
		if err != nil {
			return fmt.Errorf("--%s: %w", name, err)
		}
		memory[key] = n
		return nil
	}
	for _, err := range []error{cores("cpu-guarantee", f.guarantee, "guarantee"), bytes("memory-reserved", f.reserved, "reserved")} {
		if err != nil {
			return nil, err
		}
	}
	// A tenant has no such flag.
	if err := bytes("memory-limit", f.memory, "limit"); err != nil {
		return nil, err
	}
	if fl.Lookup("vms") != nil {
		if err := cores("cpu", f.limit, "cap"); err != nil {
			return nil, err
		}
		if err := bytes("memory", f.memory, "limit"); err != nil {
			return nil, err
		}
	}
	if fl.Changed("cpu-weight") {
		if f.weight < 1 || f.weight > tenant.MaxWeight {
			return nil, fmt.Errorf("--cpu-weight %d cannot be; give 1 to %d", f.weight, tenant.MaxWeight)
		}
		cpu["weight"] = f.weight
	}
	if fl.Changed("cpuset") {
		cpu["set"] = f.set
	}
	if fl.Changed("rt") {
		rt, err := parseRealTime(f.realTime)
		if err != nil {
			return nil, err
		}
		cpu["realTime"] = rt
	}
	for name, n := range map[string]int64{"vms": f.vms, "threads": f.threads} {
		if fl.Changed(name) {
			if n < 0 {
				return nil, fmt.Errorf("--%s %d is negative; give a number from 1 on, or 0 for no bound of its own", name, n)
			}
			share[name] = n
		}
	}
	devices := map[string]tenant.Device{}
	for _, s := range f.devices {
		name, d, err := parseDevice(s)
		if err != nil {
			return nil, err
		}
		devices[name] = d
	}
	for key, m := range map[string]map[string]any{"cpu": cpu, "memory": memory} {
		if len(m) > 0 {
			share[key] = m
		}
	}
	if len(devices) > 0 {
		share["devices"] = devices
	}
	if len(share) == 0 {
		return nil, nil
	}
	return json.Marshal(share)
}

// share returns what the flags say as a share of its own.
func (f *shareFlags) share() (s tenant.Share, err error) {
	p, err := f.patch()
	if err != nil || p == nil {
		return s, err
	}
	return s, json.Unmarshal(p, &s)
}

// parseRealTime reads RUNTIME/PERIOD, or 0.
func parseRealTime(s string) (*tenant.RealTime, error) {
	if s == "0" {
		return nil, nil
	}
	a, b, ok := strings.Cut(s, "/")
	runtime, err := time.ParseDuration(a)
	period, perr := time.ParseDuration(b)
	if !ok || err != nil || perr != nil || runtime <= 0 || period <= 0 {
		return nil, fmt.Errorf("--rt %q is not of the form RUNTIME/PERIOD, such as 5ms/20ms", s)
	}
	return &tenant.RealTime{RuntimeUs: runtime.Microseconds(), PeriodUs: period.Microseconds()}, nil
}

// parseDevice reads DRIVER:KEY=GUARANTEE[-CAP],...
func parseDevice(s string) (name string, d tenant.Device, err error) {
	bad := func(why string) (string, tenant.Device, error) {
		return "", d, fmt.Errorf("--device %q %s; give one such as blk0:ops=1000-5000,bytes=10M,packets=-20K,weight=200, or blk0: to take it away", s, why)
	}
	name, rest, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return bad("names no driver")
	}
	if rest == "" {
		return name, d, nil
	}
	for part := range strings.SplitSeq(rest, ",") {
		key, value, _ := strings.Cut(part, "=")
		if key == "weight" {
			w, err := strconv.ParseInt(value, 10, 64)
			if err != nil || w < 1 || w > tenant.MaxWeight {
				return bad(fmt.Sprintf("has a weight that is not 1 to %d", tenant.MaxWeight))
			}
			d.Ops.Weight, d.Bytes.Weight, d.Packets.Weight = w, w, w
			continue
		}
		if key == "cpu" {
			if d.CPU, err = tenant.ParseCores(value); err != nil {
				return bad("has " + err.Error())
			}
			continue
		}
		r := map[string]*tenant.Rate{"ops": &d.Ops, "bytes": &d.Bytes, "packets": &d.Packets}[key]
		if r == nil {
			return bad(fmt.Sprintf("has no key %q", key))
		}
		low, high, capped := strings.Cut(value, "-")
		for _, n := range []struct {
			text string
			to   *int64
		}{{low, &r.Guarantee}, {high, &r.Cap}} {
			if n.text == "" && capped || n.to == &r.Cap && !capped {
				continue // none
			}
			v, err := size.Parse(n.text)
			if err != nil {
				return bad("has " + err.Error())
			}
			*n.to = int64(v)
		}
	}
	return name, d, nil
}

// setCommand changes a VM.
func (c *cli) setCommand() *cobra.Command {
	var f shareFlags
	cmd := &cobra.Command{
		Use: "set NAME [flags]", GroupID: "vm", Short: "Change what a VM may use, also while it runs",
		Long: `set changes a VM's part of the processors and its other shares. What the flags do not name stays. A VM that runs has the new share at once,
except the bound of its threads, which counts from its next start.`,
		Example: `  grailctl set web --cpu 0.5
  grailctl set web --cpu-guarantee 1 --cpu 2
  grailctl set web --cpuset 0 --cpu-weight 300
  grailctl set web --memory-limit 128M --memory-reserved 64M`,
		Args: exactly("the NAME of a VM"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			patch, err := f.patch()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("cpu") {
				if patch, err = withCap(patch, f.limit); err != nil {
					return err
				}
			}
			if patch == nil {
				return fmt.Errorf("nothing to change; see %s --help", cmd.CommandPath())
			}
			client, _, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			v, err := client.SetVM(cmd.Context(), args[0], api.SetShare{Share: patch})
			if err != nil {
				return err
			}
			c.notes(v)
			if c.json {
				return c.print(v)
			}
			fmt.Fprintln(c.stdout, v.Name)
			return nil
		},
	}
	f.addVM(cmd)
	f.addRealTime(cmd)
	cmd.Flags().StringVar(&f.limit, "cpu", "", "cap on processor use in cores; 0 for none")
	cmd.Flags().StringVar(&f.memory, "memory-limit", "", "how much of its memory it may use; 0 for all. A VM that uses more is asked for it, as by grailctl reclaim")
	return cmd
}

// withCap adds a CPU cap to a patch.
func withCap(patch json.RawMessage, cores string) (json.RawMessage, error) {
	m, err := tenant.ParseCores(cores)
	if err != nil {
		return nil, fmt.Errorf("--cpu: %w", err)
	}
	share := map[string]any{}
	if patch != nil {
		if err := json.Unmarshal(patch, &share); err != nil {
			return nil, err
		}
	}
	cpu, _ := share["cpu"].(map[string]any)
	if cpu == nil {
		cpu = map[string]any{}
	}
	cpu["cap"], share["cpu"] = m, cpu
	return json.Marshal(share)
}

// cpuShareOf describes a VM's part of the processors.
func cpuShareOf(s tenant.CPU) string {
	var parts []string
	if s.Guarantee > 0 {
		parts = append(parts, s.Guarantee.String()+" guaranteed")
	}
	if r := s.RealTime; r != nil {
		parts = append(parts, fmt.Sprintf("real time %v of every %v", time.Duration(r.RuntimeUs)*time.Microsecond, time.Duration(r.PeriodUs)*time.Microsecond))
	}
	if s.Weight > 0 {
		parts = append(parts, fmt.Sprintf("weight %d", s.Weight))
	}
	if s.Set != "" {
		parts = append(parts, "on processors "+s.Set)
	}
	return strings.Join(parts, ", ")
}
