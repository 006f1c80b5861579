package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/sandbox"
)

// sum prints how long the recoveries took, and checks that every crash left a record.
func (c *campaign) sum(ctx context.Context, driver string) error {
	var list []api.Crash
	if err := c.box.Ask(ctx, &list, "driver", "crashes", driver); err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(r api.Crash) bool { return r.OfSpare }) // an unready spare on a busy host
	if len(list) != c.crashes {
		return fmt.Errorf("%d crash records, not %d", len(list), c.crashes)
	}
	times := map[string][]float64{}
	for _, r := range list {
		times[r.Injected] = append(times[r.Injected], r.RecoverMs)
	}
	for _, how := range sandbox.Hows {
		t := times[how]
		if len(t) == 0 {
			continue
		}
		slices.Sort(t)
		at := func(part float64) float64 { return t[min(int(part*float64(len(t))), len(t)-1)] }
		c.say("%4d × %-5s recovered in %.0f ms (median), %.0f ms (95 %%), %.0f ms (longest)", len(t), how, at(0.5), at(0.95), t[len(t)-1])
	}
	if n := len(times[""]); n > 0 {
		return fmt.Errorf("%d crashes that nobody asked for", n)
	}
	return nil
}
