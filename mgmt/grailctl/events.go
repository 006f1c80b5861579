package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
)

func (c *cli) eventsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "events", GroupID: "host", Short: "Show what happened to VMs and drivers",
		Long: `events shows what happened since graild started, at most the newest 1,000 events: VMs that ended, drivers that died, recovered or were upgraded,
ports, consoles and requests that failed. With --follow it goes on with what happens from now on, across restarts of graild. With --json
each event is one line.`,
		Example: `  grailctl events --follow
  grailctl events --json | jq -r 'select(.event == "driver died") | .details.why'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			var last uint64
			pid := 0
			err := c.retry(ctx, func(client *api.Client) error {
				v, err := client.Version(ctx)
				if err != nil {
					return err
				}
				if v.PID != pid { // another graild counts anew
					pid, last = v.PID, 0
				}
				return client.Events(ctx, last, follow, func(e api.Event) error {
					last = e.Seq
					return c.showEvent(e)
				})
			})
			if ctx.Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	return cmd
}

func (c *cli) showEvent(e api.Event) error {
	if c.json {
		return json.NewEncoder(c.stdout).Encode(e)
	}
	var details []string
	for _, k := range slices.Sorted(maps.Keys(e.Details)) {
		if v := e.Details[k]; v != "" && k != "pid" {
			details = append(details, k+"="+quoteIfNeeded(v))
		}
	}
	_, err := fmt.Fprintf(c.stdout, "%s  %-5s %s  %s\n", stamp(e.Time), e.Level, e.Event, strings.Join(details, " "))
	return err
}

// quoteIfNeeded quotes what would not be one word, or could move the cursor.
func quoteIfNeeded(s string) string {
	if q := fmt.Sprintf("%q", s); strings.ContainsAny(s, " =\"") || q != `"`+s+`"` {
		return q
	}
	return s
}
