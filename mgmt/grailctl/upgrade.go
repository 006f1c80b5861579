package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/personalities/native"
)

func (c *cli) driverUpgradeCommand() *cobra.Command {
	var program string
	var deadline time.Duration
	cmd := &cobra.Command{
		Use: "upgrade NAME [--program FILE]", Short: "Replace a driver VM's program while its clients keep working",
		Long: `upgrade starts the new program in a VM of its own beside the present one, waits until it is ready, and has it test itself. Then the present
one finishes what it has begun, the clients' rings switch to the new one, and the old one ends. If the new program does not come up or fails its
test by the deadline, nothing changes. If it dies of itself within 30 s after it has taken over, the old program is used again.

The program is copied. It is used for all later instances, until the next upgrade. Without --program it is the installed one again.`,
		Example: `  grailctl driver upgrade blk0 --program ./build/blk-new
  grailctl driver upgrade blk0                            # back to the installed program`,
		ValidArgsFunction: completeDrivers, Args: exactly("the NAME of a driver"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if deadline <= 0 {
				return fmt.Errorf("--deadline %v is too short; give 1s to 1h", deadline)
			}
			client, dirs, err := c.connect(cmd.Context())
			if err != nil {
				return err
			}
			req := api.UpgradeDriver{Installed: program == "", DeadlineMs: int(deadline.Milliseconds())}
			if program != "" {
				f, err := native.CheckPath(program)
				if err != nil {
					return err
				}
				defer f.Close()
				ticket, release, err := api.HandOver(dirs.Handover(), map[api.Role]*os.File{api.RoleProgram: f})
				if err != nil {
					return err
				}
				defer release()
				req.Ticket = ticket
			}
			u, err := client.UpgradeDriver(cmd.Context(), args[0], req)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(u)
			}
			fmt.Fprintf(c.stdout, "%s runs %s now, in place of %s; its clients waited %.1f ms\n", u.Driver, programName(u.To), programName(u.From), u.SwitchMs)
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&program, "program", "", "the new program, a static ELF file (default: the installed one)")
	fl.DurationVar(&deadline, "deadline", 20*time.Second, "how long the new program may take to be ready and to test itself")
	return cmd
}

// programName names a driver's program by the digest of its file.
func programName(digest string) string {
	if digest == "" {
		return "the installed program"
	}
	return "program sha256:" + digest[:min(len(digest), 12)]
}
