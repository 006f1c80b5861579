package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

func (c *cli) driverStateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "state NAME", Short: "Show what a driver VM keeps for the instance that replaces it", ValidArgsFunction: completeDrivers,
		Long: `state shows how much a driver keeps beside its rings, so that the next instance goes on from there: a net
driver the addresses that it has learned, names and queries under way, and its counters; a block driver its counters.
It is a checkpoint and a journal of the records since then. grailctl crash show tells what an instance took over.`,
		Example: `  grailctl driver state net0
  grailctl driver state net0 --json`,
		Args: exactly("the NAME of a driver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s api.DriverState
			err := c.retry(cmd.Context(), func(client *api.Client) (err error) {
				s, err = client.DriverState(cmd.Context(), args[0])
				return err
			})
			if err != nil {
				return err
			}
			if c.json {
				return c.print(s)
			}
			w := c.stdout
			field(w, "state", stateLine(s))
			field(w, "region", size.Format(uint64(s.Size)))
			if s.Generation == 0 {
				return nil
			}
			field(w, "version", fmt.Sprint(s.Version))
			field(w, "checkpoint", fmt.Sprintf("number %d, %d of 2 valid", s.Generation, s.Checkpoints))
			field(w, "sequence", fmt.Sprint(s.Sequence))
			if !s.Changed.IsZero() {
				field(w, "seen", fmt.Sprintf("%v ago", time.Since(s.Changed).Round(time.Millisecond)))
			}
			field(w, "saved", stamp(s.Saved))
			return nil
		},
	}
}

// stateLine describes a driver's state in a few words.
func stateLine(s api.DriverState) string {
	if s.Generation == 0 {
		return "nothing yet"
	}
	if s.Records+s.Items == 0 {
		return "counters alone"
	}
	return fmt.Sprintf("%d records, 1 checkpoint with %d, and counters; %d bytes", s.Records, s.Items, s.Bytes)
}
