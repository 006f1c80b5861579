package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/tenant"
)

// Terminal control (ECMA-48): the alternate screen without a cursor, back, and one picture over the other.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	fromTop     = "\x1b[H"
	endOfLine   = "\x1b[K\r\n"
	restOfAll   = "\x1b[J"
)

func (c *cli) topCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "top [TENANT]", GroupID: "host", Short: "Watch what tenants, VMs and drivers use of what is reserved for them", ValidArgsFunction: completeTenants,
		Long: `top shows the tree of reservations with what each node uses: processors, memory, operations and bytes of disks and networks, again and again until Ctrl-C.

RESERVED is the guarantee, DUE what the node gets while everybody who runs wants more, USED what it had during the last interval. THROTTLED is
the part of that time in which its cap held it up. OPS/S and BYTES/S are requests and data of disks, frames and data of networks, of a VM's own devices;
those of a tenant are its VMs' and sub-tenants', those of a driver are what it served.

What the host does not count, because it has no cgroups for Grail, is "-".`,
		Example: `  grailctl top
  grailctl top acme --interval 5s
  grailctl top --once
  grailctl top --once --json | jq '.[] | select(.kind == "vm") | {name, usedCores}'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < minTop {
				return fmt.Errorf("--interval %v is too short; give %v or more", interval, minTop)
			}
			t := &top{c: c, interval: interval}
			if len(args) > 0 {
				t.path = args[0]
			}
			return t.run(cmd.Context(), once)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "show one interval and end")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "how long to measure, and how often to show it")
	return cmd
}

// minTop is the shortest interval: below it, looking is what one would see.
const minTop = 100 * time.Millisecond

// top watches a tenant's part of the tree.
type top struct {
	c        *cli
	path     string
	interval time.Duration
}

// usage is a node of the tree with what it used during an interval.
type usage struct {
	api.Domain
	Used      *float64    `json:"usedCores,omitempty"`     // processors, on average; nil: not known
	Throttled *float64    `json:"throttledPart,omitempty"` // of the interval, in which its cap held it up
	IO        *deviceLoad `json:"io,omitempty"`            // nil: it has none, or it is not known
}

// deviceLoad is what was done for a node by drivers, or by a driver.
type deviceLoad struct {
	Ops   float64 `json:"opsPerSecond"`
	Bytes float64 `json:"bytesPerSecond"`
}

// sample is one look at all counters.
type sample struct {
	domains []api.Domain
	io      map[ioKey]counted
}

// ioKey names who a counter belongs to: a driver, or a client of one.
type ioKey struct{ driver, disk, client string }

type counted struct{ ops, bytes uint64 }

// run shows interval after interval. It returns nil when ctx ends, as by Ctrl-C.
func (t *top) run(ctx context.Context, once bool) error {
	before, err := t.look(ctx)
	if err != nil {
		return err
	}
	screen := !once && !t.c.json && isTerminal(t.c.stdout)
	if screen {
		fmt.Fprint(t.c.stdout, enterScreen)
		defer fmt.Fprint(t.c.stdout, leaveScreen)
	}
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if once {
				return ctx.Err()
			}
			return nil
		case <-tick.C:
		}
		now, err := t.look(ctx)
		if ctx.Err() != nil && !once {
			return nil
		}
		if err != nil {
			return err
		}
		list := usages(before, now)
		before = now
		switch {
		case t.c.json:
			err = t.c.print(list)
		case screen:
			err = t.draw(list)
		default:
			err = topTable(t.c.stdout, list)
			if !once {
				fmt.Fprintln(t.c.stdout)
			}
		}
		if err != nil || once {
			return err
		}
	}
}

// look asks for all counters. A driver that is being replaced counts nothing just then.
func (t *top) look(ctx context.Context) (s sample, err error) {
	s.io = map[ioKey]counted{}
	err = t.c.retry(ctx, func(client *api.Client) (err error) {
		if s.domains, err = client.Tenant(ctx, t.path); err != nil {
			return err
		}
		drivers, err := client.Drivers(ctx)
		if err != nil {
			return err
		}
		for _, d := range drivers {
			stats, err := client.DriverStats(ctx, d.Name)
			if api.Down(err) || ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			if err != nil {
				continue
			}
			for _, one := range stats.Clients {
				n := countersOf(one.Counters)
				s.io[ioKey{d.Name, one.Disk, one.Client}] = n
			}
		}
		return nil
	})
	return s, err
}

// countersOf sums a client's counters.
func countersOf(c map[string]uint64) (n counted) {
	for _, name := range []string{"reads", "writes", "flushes", "discards", "txPackets", "rxPackets"} {
		n.ops += c[name]
	}
	for _, name := range []string{"readBytes", "writeBytes", "txBytes", "rxBytes"} {
		n.bytes += c[name]
	}
	return n
}

// usages compares two looks.
func usages(before, now sample) []usage {
	was := map[string]api.Domain{}
	for _, d := range before.domains {
		was[string(d.Kind)+" "+d.Name] = d
	}
	var seconds float64
	list := make([]usage, 0, len(now.domains))
	for _, d := range now.domains {
		u := usage{Domain: d}
		if old, ok := was[string(d.Kind)+" "+d.Name]; ok && d.CPU != nil && old.CPU != nil {
			if dt := d.CPU.Time.Sub(old.CPU.Time); dt > 0 && d.CPU.UsedNs >= old.CPU.UsedNs {
				seconds = dt.Seconds()
				used, held := float64(d.CPU.UsedNs-old.CPU.UsedNs)/float64(dt), float64(d.CPU.ThrottledNs-min(old.CPU.ThrottledNs, d.CPU.ThrottledNs))/float64(dt)
				u.Used, u.Throttled = &used, &held
			}
		}
		list = append(list, u)
	}
	if seconds == 0 {
		return list
	}
	add := func(is func(u *usage) bool, n deviceLoad) {
		for i := range list {
			if u := &list[i]; is(u) {
				if u.IO == nil {
					u.IO = &deviceLoad{}
				}
				u.IO.Ops += n.Ops
				u.IO.Bytes += n.Bytes
			}
		}
	}
	for k, n := range now.io {
		old, ok := before.io[k]
		if !ok || n.ops < old.ops || n.bytes < old.bytes {
			continue
		}
		rate := deviceLoad{Ops: float64(n.ops-old.ops) / seconds, Bytes: float64(n.bytes-old.bytes) / seconds}
		add(func(u *usage) bool { return u.Kind == tenant.Driver && u.Name == k.driver }, rate)
		i := slices.IndexFunc(list, func(u usage) bool { return u.Kind == tenant.VM && u.Name == k.client })
		if i < 0 {
			continue
		}
		parent := list[i].Parent
		add(func(u *usage) bool {
			return u.Kind == tenant.VM && u.Name == k.client || u.Kind == tenant.Host || u.Kind == tenant.Tenant && (parent == u.Name || strings.HasPrefix(parent, u.Name+"/"))
		}, rate)
	}
	return list
}

// draw shows a picture in place of the last one.
func (t *top) draw(list []usage) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "grail top   %s   every %v   Ctrl-C ends it\n\n", time.Now().Format(time.TimeOnly), t.interval)
	if err := topTable(&b, list); err != nil {
		return err
	}
	_, err := io.WriteString(t.c.stdout, fromTop+strings.ReplaceAll(b.String(), "\n", endOfLine)+restOfAll)
	return err
}

// topTable writes the tree, indented.
func topTable(w io.Writer, list []usage) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "DOMAIN\tKIND\tCPU RESERVED\tDUE\tUSED\tTHROTTLED\tMEMORY RESERVED\tUSED\tOPS/S\tBYTES/S")
	for _, u := range list {
		due, used, throttled, memory, ops, data := "-", "-", "-", "-", "-", "-"
		if u.Live {
			due = bare(u.Due)
		}
		if u.Used != nil {
			used = fmt.Sprintf("%.2f", *u.Used)
		}
		if u.Throttled != nil {
			throttled = fmt.Sprintf("%.0f %%", *u.Throttled*100)
		}
		if u.MemoryUsed != nil {
			memory = tenant.MemoryBytes.Format(int64(*u.MemoryUsed))
		}
		if u.IO != nil {
			ops, data = fmt.Sprintf("%.0f", u.IO.Ops), tenant.MemoryBytes.Format(int64(u.IO.Bytes))
		}
		fmt.Fprintf(tw, "%s%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", strings.Repeat("  ", depth(u.Domain)), domainName(u.Domain), string(u.Kind),
			bare(u.Share.CPU.Guarantee), due, used, throttled, tenant.MemoryBytes.Format(u.Share.Memory.Reserved), memory, ops, data)
	}
	return tw.Flush()
}

// depth is how far below the host a node is.
func depth(d api.Domain) int {
	switch {
	case d.Kind == tenant.Host:
		return 0
	case d.Parent == "" || d.Parent == "/":
		return 1
	}
	return 2 + strings.Count(strings.Trim(d.Parent, "/"), "/")
}
