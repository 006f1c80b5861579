package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/mgmt/tenant"
	"github.com/grailos/grail/mgmt/trace"
)

func (c *cli) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", GroupID: "vm", Short: "Show all that is known about a VM or a driver",
		Long: `inspect shows how a VM or a driver is set up, what it does, and how it ended. System calls
that Grail does not serve are listed as denied, with how often the guest tried.`,
		Args: exactly("the NAME of a VM or a driver"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			v, d, err := c.find(cmd.Context(), args[0])
			switch {
			case err != nil:
				return err
			case d != nil && c.json:
				return c.print(d)
			case d != nil:
				c.showDriver(*d)
			case c.json:
				return c.print(v)
			default:
				c.showVM(*v)
			}
			return nil
		},
	}
}

// find returns the VM or the driver of that name: one of them, or an error.
func (c *cli) find(ctx context.Context, name string) (*api.VM, *api.Driver, error) {
	var v *api.VM
	var d *api.Driver
	err := c.retry(ctx, func(client *api.Client) error {
		vm, err := client.VM(ctx, name)
		if err == nil {
			v = &vm
			return nil
		}
		if api.KindOf(err) != api.NotFound {
			return err
		}
		driver, derr := client.Driver(ctx, name)
		switch {
		case derr == nil:
			d = &driver
			return nil
		case api.KindOf(derr) == api.NotFound:
			return err
		}
		return derr
	})
	return v, d, err
}

// field prints one named value, unless it is empty.
func field(w io.Writer, name, value string) {
	if value != "" {
		fmt.Fprintf(w, "%-12s %s\n", name, value)
	}
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05.000")
}

func (c *cli) showVM(v api.VM) {
	w := c.stdout
	field(w, "name", v.Name)
	field(w, "state", stateOf(v))
	field(w, "program", strings.Join(append([]string{v.Program}, v.Args...), " "))
	field(w, "environment", strings.Join(v.Env, " "))
	field(w, "files", v.Files)
	field(w, "directory", v.Dir)
	field(w, "personality", v.Personality)
	field(w, "image", imageOf(v.Image))
	field(w, "engine", string(v.EngineUsed))
	field(w, "memory", size.Format(v.MemoryBytes))
	if v.MemoryLimit > 0 {
		field(w, "memory limit", size.Format(v.MemoryLimit))
	}
	if v.CPU > 0 {
		field(w, "cpu cap", capOf(v.CPU))
	}
	field(w, "tenant", v.Tenant)
	field(w, "cpu share", cpuShareOf(v.Share.CPU))
	field(w, "disks", disksOf(v.Disks))
	field(w, "ports", portsOf(v.Nets))
	for _, p := range v.Publish {
		field(w, "published", p.String())
	}
	if v.PID > 0 {
		field(w, "pid", fmt.Sprint(v.PID))
	}
	field(w, "created", stamp(v.Created))
	field(w, "started", stamp(v.Started))
	field(w, "ended", stamp(v.Ended))
	for _, n := range v.Notes {
		field(w, "note", n)
	}
	for _, l := range v.Logs {
		field(w, "log", l)
	}
	if v.Status != nil {
		showStats(w, v.Status.Stats, v.Status.Denied)
	}
	if r := v.Report; r != nil {
		field(w, "cause", string(r.Cause))
		field(w, "message", r.Message)
		if r.Cause != hv.CauseExit || r.Code != 0 {
			field(w, "said", r.Said)
		}
		showStats(w, r.Stats, r.Denied)
		if f := r.Fault; f != nil && r.Cause == hv.CauseSignal {
			showTrace(w, traceOf(v.Program, f))
			showFault(w, f)
		}
	}
}

func imageOf(i *api.Image) string {
	switch {
	case i == nil:
		return ""
	case i.Writable:
		return i.Name + ":rw (" + i.Digest + ")"
	}
	return i.Name + " (" + i.Digest + ")"
}

func showStats(w io.Writer, s hv.Stats, denied map[string]int) {
	field(w, "exits", fmt.Sprint(s.Exits))
	field(w, "system calls", fmt.Sprint(s.Syscalls))
	field(w, "threads", fmt.Sprint(s.Threads))
	field(w, "memory used", fmt.Sprintf("%d of %d bytes", s.MemoryUsed, s.MemoryBytes))
	showMemory(w, &s.Memory)
	if s.DevRequests > 0 {
		field(w, "device", fmt.Sprintf("%d requests, %d bytes", s.DevRequests, s.DevBytes))
	}
	for _, call := range slices.Sorted(maps.Keys(denied)) {
		field(w, "denied", fmt.Sprintf("%s, %d times", call, denied[call]))
	}
}

// showMemory prints what is reserved, and what came of orders to give memory back.
func showMemory(w io.Writer, m *hv.MemoryState) {
	amount := func(n uint64) string { return tenant.MemoryBytes.Format(int64(n)) }
	if m.Reserved > 0 {
		text := fmt.Sprintf("%s, %s prefaulted", amount(m.Reserved), amount(m.Prefaulted))
		if m.Note != "" {
			text = amount(m.Reserved) + ", " + m.Note
		}
		field(w, "reserved", text)
	}
	if m.Bound > 0 {
		text := amount(m.Bound)
		if m.Pending {
			text += ", being asked for the rest"
		}
		field(w, "memory bound", text)
	}
	if m.Given+m.Taken > 0 {
		field(w, "given back", fmt.Sprintf("%s when asked, %s by force", amount(m.Given), amount(m.Taken)))
	}
}

// traceOf decodes a fault with the names of the program at path, if it is still there.
func traceOf(path string, f *hv.Fault) *api.Trace {
	file, err := os.Open(path)
	if err != nil {
		return trace.Decode(f, nil)
	}
	defer file.Close()
	names, _ := trace.Open(file) // without names the addresses still tell
	return trace.Decode(f, names)
}

func showTrace(w io.Writer, t *api.Trace) {
	field(w, "  fault", t.What)
	field(w, "  at", t.Instruction)
	for _, f := range t.Stack {
		line := fmt.Sprintf("%#x", f.PC)
		if f.Func != "" {
			line += " " + f.Func
		}
		if f.File != "" {
			line += fmt.Sprintf(" %s:%d", f.File, f.Line)
		}
		field(w, "  stack", line)
	}
}

func showFault(w io.Writer, f *hv.Fault) {
	for i, name := range slices.Sorted(maps.Keys(f.Regs)) {
		sep := "  "
		if i%4 == 3 || i == len(f.Regs)-1 {
			sep = "\n"
		}
		fmt.Fprintf(w, "  %-8s %016x%s", name, f.Regs[name], sep)
	}
}

func (c *cli) showDriver(d api.Driver) {
	w := c.stdout
	field(w, "name", d.Name)
	field(w, "type", d.Type)
	field(w, "state", stateOfDriver(d))
	field(w, "message", d.Message)
	field(w, "engine", string(d.EngineUsed))
	field(w, "memory", size.Format(d.MemoryBytes))
	field(w, "instance", fmt.Sprint(d.Generation))
	field(w, "policy", policyLine(d))
	if d.PID > 0 {
		field(w, "pid", fmt.Sprint(d.PID))
	}
	field(w, "created", stamp(d.Created))
	field(w, "started", stamp(d.Started))
	field(w, "crashes", fmt.Sprint(d.Crashes))
	if d.SpareCrashes > 0 {
		field(w, "spares died", fmt.Sprint(d.SpareCrashes))
	}
	for _, k := range d.Disks {
		field(w, "disk", diskLine(k))
		field(w, "socket", k.Socket)
		if k.Errors > 0 {
			field(w, "disk error", diskErrorLine(k))
		}
	}
	if d.Kept != nil {
		field(w, "kept", stateLine(*d.Kept))
	}
	for _, b := range d.Clients {
		state := "waiting"
		if b.Attached {
			state = "attached"
		}
		if b.Error != "" {
			state = b.Error
		}
		field(w, "client", fmt.Sprintf("%s on %s, %d queues: %s", b.Name, b.Disk, b.Queues, state))
	}
	if d.NAT != nil {
		showNAT(w, d.Uplink, d.NAT)
	}
	for _, n := range d.Notes {
		field(w, "note", n)
	}
	for _, l := range d.Logs {
		field(w, "log", l)
	}
	if d.Status != nil {
		showStats(w, d.Status.Stats, d.Status.Denied)
	}
}

// showNAT shows a net driver's way out of the host.
func showNAT(w io.Writer, uplink string, n *api.NAT) {
	field(w, "uplink", fmt.Sprintf("%s, gateway %s, process %d", uplink, n.Gateway, n.PID))
	field(w, "uplink fails", n.Error)
	if n.Ends > 0 {
		field(w, "uplink ended", fmt.Sprintf("%d times, the last one %s", n.Ends, n.LastEnd))
	}
	for _, m := range n.Missing {
		field(w, "uplink lacks", m)
	}
	for _, p := range n.Published {
		field(w, "published", p)
	}
}

// diskErrorLine says what a disk failed to do.
func diskErrorLine(k api.Disk) string {
	return fmt.Sprintf("%s failed %d requests, the last one with: %s", k.ID, k.Errors, k.LastError)
}

func diskLine(k api.Disk) string {
	s := fmt.Sprintf("%s = %s (%s", k.ID, k.Path, size.Format(k.Bytes))
	if k.ReadOnly {
		s += ", read-only"
	}
	return s + ")"
}
