package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
)

func (c *cli) driverStatsCommand() *cobra.Command {
	var watch, rings bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use: "stats NAME", Short: "Show what each client of a driver VM sends, receives, reads and writes", ValidArgsFunction: completeDrivers,
		Long: `stats shows what a driver counted for each port or disk that has a client.
Packets and bytes are sent by the client or received by it; a frame that was dropped is counted
with its reason, at the sender if it is to blame. The counters go on when an instance is replaced; a port's
go on for as long as there is the port, a disk's begin at 0 with each client.

CPU is the processor time that the driver has used for the client, with its waiting and polling.
It begins at 0 with each instance. --rings shows that, and the operations, of each ring.

With --watch, the counters are shown again and again, as what they grew by in a second.`,
		Example: `  grailctl driver stats net0
  grailctl driver stats blk0 --watch --interval 5s
  grailctl driver stats net0 --json | jq '.clients[] | {disk, counters}'`,
		Args: exactly("the NAME of a driver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < 10*time.Millisecond {
				return fmt.Errorf("--interval %v is too short; give 10ms or more", interval)
			}
			ask := func() (s api.DriverStats, err error) {
				err = c.retry(cmd.Context(), func(client *api.Client) (err error) {
					s, err = client.DriverStats(cmd.Context(), args[0])
					return err
				})
				return s, err
			}
			last, err := ask()
			if err != nil {
				return err
			}
			if !watch {
				return c.showStats(last, nil, rings)
			}
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-cmd.Context().Done():
					return nil
				case <-tick.C:
				}
				now, err := ask()
				var e *api.Error
				if errors.As(err, &e) && e.Kind == api.Busy {
					fmt.Fprintln(c.stderr, "grailctl:", e.Message)
					continue
				}
				if err != nil {
					if cmd.Context().Err() != nil {
						return nil
					}
					return err
				}
				if err := c.showStats(now, &last, rings); err != nil {
					return err
				}
				last = now
			}
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and show what changes in a second, until Ctrl-C")
	cmd.Flags().BoolVar(&rings, "rings", false, "show the operations, bytes and processor time of each ring")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "with --watch, how often")
	return cmd
}

// showStats prints counters, or with last what they grew by in a second since; of each client, or of each ring.
func (c *cli) showStats(s api.DriverStats, last *api.DriverStats, rings bool) error {
	if c.json {
		return c.print(s)
	}
	// grown returns the counter of one client, or how fast it grows.
	grown := func(k api.ClientStats, name string) string { return fmt.Sprint(k.Counters[name]) }
	if last != nil {
		before := append(slices.Clone(last.Clients), api.ClientStats{Counters: last.Uplink})
		seconds := max(s.Time.Sub(last.Time).Seconds(), 1e-3)
		grown = func(k api.ClientStats, name string) string {
			now, was := k.Counters[name], uint64(0)
			if i := slices.IndexFunc(before, func(b api.ClientStats) bool { return b.ID == k.ID }); i >= 0 {
				was = before[i].Counters[name]
			}
			return fmt.Sprintf("%.0f/s", float64(now-min(was, now))/seconds)
		}
	}
	if rings {
		return c.showRingUse(s, grown)
	}
	columns := []column{{"READS", "reads"}, {"BYTES", "readBytes"}, {"WRITES", "writes"}, {"BYTES", "writeBytes"}, {"FLUSHES", "flushes"},
		{"DISCARDS", "discards"}, {"ERRORS", "errors"}}
	what := "DISK"
	if s.Type == "net" {
		columns = []column{{"SENT", "txPackets"}, {"BYTES", "txBytes"}, {"RECEIVED", "rxPackets"}, {"BYTES", "rxBytes"}}
		what = "PORT"
	}
	header := what + "\tCLIENT"
	for _, k := range columns {
		header += "\t" + k.title
	}
	rows := s.Clients
	if s.Type == "net" {
		header += "\tDROPPED"
		if s.Uplink != nil {
			rows = append(slices.Clone(rows), api.ClientStats{Client: "-", Disk: "uplink", Counters: s.Uplink})
		}
	}
	defer func() {
		for _, k := range s.Disks {
			if k.Errors > 0 {
				fmt.Fprintf(c.stdout, "disk %s\n", diskErrorLine(k))
			}
		}
	}()
	header += "\tCPU"
	return c.table(header, func(w io.Writer) {
		for _, k := range rows {
			fmt.Fprintf(w, "%s\t%s", k.Disk, k.Client)
			for _, col := range columns {
				fmt.Fprintf(w, "\t%s", grown(k, col.counter))
			}
			if s.Type == "net" {
				var drops []string
				for _, name := range slices.Sorted(maps.Keys(k.Counters)) {
					if reason, ok := strings.CutPrefix(name, "drop."); ok {
						drops = append(drops, grown(k, name)+" "+reason)
					}
				}
				fmt.Fprintf(w, "\t%s", dash(strings.Join(drops, ", ")))
			}
			fmt.Fprintf(w, "\t%s\n", cpuTime(grown(k, "cpuNs")))
		}
	})
}

// column is a column of a table of counters.
type column struct{ title, counter string }

// showRingUse prints what each ring had done. grown is as in showStats.
func (c *cli) showRingUse(s api.DriverStats, grown func(api.ClientStats, string) string) error {
	what := "DISK"
	if s.Type == "net" {
		what = "PORT"
	}
	return c.table(what+"\tCLIENT\tRING\tOPERATIONS\tBYTES\tCPU", func(w io.Writer) {
		for _, k := range s.Clients {
			for i := 0; ; i++ {
				ring := fmt.Sprintf("ring%d.", i)
				if _, ok := k.Counters[ring+"cpuNs"]; !ok {
					break
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", k.Disk, k.Client, i, grown(k, ring+"ops"), grown(k, ring+"bytes"), cpuTime(grown(k, ring+"cpuNs")))
			}
		}
	})
}

// cpuTime reads a number of nanoseconds, or of nanoseconds a second, for a person.
func cpuTime(s string) string {
	per, rate := strings.CutSuffix(s, "/s")
	ns, err := strconv.ParseFloat(per, 64)
	switch {
	case err != nil:
		return s
	case rate:
		return fmt.Sprintf("%.1f%%", ns/1e7)
	}
	return time.Duration(ns).Round(time.Millisecond).String()
}
