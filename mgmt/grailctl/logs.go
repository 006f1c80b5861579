package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

// logPause is how often a log that is followed is looked at.
const logPause = 100 * time.Millisecond

// logOptions say what of a log is printed, and how.
type logOptions struct {
	follow, stamps, all, raw bool
	tail                     int
	since                    time.Time
}

func (c *cli) logsCommand() *cobra.Command {
	var o logOptions
	var since string
	var list bool
	cmd := &cobra.Command{
		Use: "logs NAME", GroupID: "vm", Short: "Print what a VM or a driver wrote to its console",
		Long: `logs prints the console of the present or last run of a VM, or of all instances of a driver; also of a VM that is gone, until its
log makes room for newer ones. A console log is bounded: of much output, the end is kept, and of output that comes too fast only a part; a line
in brackets then says how much is missing.

On a terminal, control characters are shown as dots, so that no VM can do anything to it; --raw prints them as they are, as into files and pipes.`,
		Example: `  grailctl logs web
  grailctl logs -f --timestamps --tail 20 web
  grailctl logs --since 10m blk0
  grailctl logs --list`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: completeLogs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			switch {
			case list && len(args) == 0:
				return c.listLogs(cmd.Context())
			case list:
				return fmt.Errorf("--list lists all logs; leave %s out", args[0])
			case len(args) == 0:
				return fmt.Errorf("logs needs the NAME of a VM or a driver; see grailctl logs --help")
			}
			if o.since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			return c.logs(cmd.Context(), args[0], o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on as the console grows, until the VM ends")
	f.IntVarP(&o.tail, "tail", "n", -1, "print only the last lines: how many")
	f.StringVar(&since, "since", "", "print only lines written since then: a duration, such as 10m, or a time, such as 2026-01-02T15:04:05Z")
	f.BoolVarP(&o.stamps, "timestamps", "t", false, "begin each line with the time when it was written")
	f.BoolVarP(&o.all, "all", "a", false, "also print earlier runs of the VM")
	f.BoolVar(&o.raw, "raw", false, "print control characters also on a terminal")
	f.BoolVar(&list, "list", false, "list the logs that are kept, also those of VMs that are gone")
	return cmd
}

// parseSince reads a duration before now or a time; an empty text is the zero time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since %q is neither a duration, such as 10m or 2h, nor a time, such as 2026-01-02T15:04:05Z", s)
}

func (c *cli) log(ctx context.Context, name string) (l api.Log, err error) {
	err = c.retry(ctx, func(client *api.Client) error {
		l, err = client.Log(ctx, name)
		return err
	})
	return l, err
}

func (c *cli) logs(ctx context.Context, name string, o logOptions) error {
	l, err := c.log(ctx, name)
	if err != nil {
		return err
	}
	src := newLogSource(name, o.all)
	defer src.close()
	lines, err := src.read(l)
	if err != nil {
		return err
	}
	p := &logPrinter{w: c.stdout, stamps: o.stamps, clean: !o.raw && isTerminal(c.stdout), fresh: true}
	for _, line := range o.pick(lines) {
		if err := p.print(line); err != nil {
			return err
		}
	}
	for o.follow && l.Live {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logPause):
		}
		now, err := c.log(ctx, name)
		if err != nil && api.KindOf(err) == api.NotFound {
			return nil // removed at its end
		}
		if err != nil {
			return err
		}
		l = now
		if lines, err = src.read(l); err != nil {
			return err
		}
		for _, line := range lines {
			if err := p.print(line); err != nil {
				return err
			}
		}
	}
	return nil
}

// pick returns the lines that are asked for.
func (o *logOptions) pick(lines []logLine) []logLine {
	for !o.since.IsZero() && len(lines) > 0 && !lines[0].at.IsZero() && lines[0].at.Before(o.since) {
		lines = lines[1:]
	}
	if o.tail >= 0 {
		lines = lines[max(0, len(lines)-o.tail):]
	}
	return lines
}

func (c *cli) listLogs(ctx context.Context) error {
	var list []api.KeptLog
	err := c.retry(ctx, func(client *api.Client) (err error) {
		list, err = client.Logs(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if c.json {
		return c.print(list)
	}
	return c.table("NAME\tSTATE\tSIZE\tCHANGED", func(w io.Writer) {
		for _, l := range list {
			state := "ended"
			switch {
			case l.Live:
				state = "live"
			case l.Gone:
				state = "gone"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Name, state, size.Format(l.Bytes), stamp(l.Changed))
		}
	})
}

// completeLogs offers the names of VMs, drivers and logs, if a graild runs.
func completeLogs(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	names, how := completeVMs(cmd, args, word)
	client, _, err := running(cmd.Context())
	if err != nil {
		return names, how
	}
	list, _ := client.Logs(cmd.Context())
	for _, l := range list {
		if l.Gone {
			names = append(names, l.Name)
		}
	}
	return names, how
}
