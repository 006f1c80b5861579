package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
)

// logPause is how often a log that is followed is looked at.
const logPause = 100 * time.Millisecond

func (c *cli) logsCommand() *cobra.Command {
	var follow bool
	var tail int
	cmd := &cobra.Command{
		Use: "logs NAME", GroupID: "vm", Short: "Print what a VM or a driver wrote to its console",
		Long: "logs prints the console of the present or last run. A console log is bounded: of much output, the end is kept.",
		Args: exactly("the NAME of a VM or a driver"), ValidArgsFunction: completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.logs(cmd.Context(), args[0], follow, tail)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as the console grows, until the VM ends")
	cmd.Flags().IntVarP(&tail, "tail", "n", -1, "print only the last lines: how many")
	return cmd
}

// console tells where a VM's or a driver's console log is, and whether it can still grow.
func (c *cli) console(ctx context.Context, name string) (paths []string, live bool, err error) {
	v, d, err := c.find(ctx, name)
	switch {
	case err != nil:
		return nil, false, err
	case d != nil:
		return d.Logs, true, nil
	}
	return v.Logs, v.State.Live(), nil
}

func (c *cli) logs(ctx context.Context, name string, follow bool, tail int) error {
	paths, live, err := c.console(ctx, name)
	if err != nil {
		return err
	}
	// at says how much of each file was printed.
	at := map[string]int64{}
	var text strings.Builder
	for _, p := range paths {
		n, err := copyFrom(&text, p, 0)
		if err != nil {
			return err
		}
		at[p] = n
	}
	if _, err := io.WriteString(c.stdout, lastLines(text.String(), tail)); err != nil {
		return err
	}
	for follow && live {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(logPause):
		}
		if paths, live, err = c.console(ctx, name); err != nil {
			if api.KindOf(err) == api.NotFound {
				return nil // removed at its end
			}
			return err
		}
		for _, p := range paths {
			st, err := os.Stat(p)
			if err != nil {
				continue
			}
			if st.Size() < at[p] {
				at[p] = 0 // the log went round
			}
			n, err := copyFrom(c.stdout, p, at[p])
			if err != nil {
				return err
			}
			at[p] += n
		}
	}
	return nil
}

// copyFrom copies a file from offset on and returns how much that was.
func copyFrom(w io.Writer, path string, offset int64) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("console log: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return 0, fmt.Errorf("console log: %w", err)
	}
	return io.Copy(w, f)
}

// lastLines returns the last n lines of s, or all of it when n is negative.
func lastLines(s string, n int) string {
	if n < 0 {
		return s
	}
	end := len(strings.TrimSuffix(s, "\n"))
	for i := end; i > 0; i-- {
		if i == end || s[i-1] == '\n' {
			if i < end && s[i-1] == '\n' {
				n--
			}
			if n <= 0 {
				return s[i:]
			}
		}
	}
	return s
}
