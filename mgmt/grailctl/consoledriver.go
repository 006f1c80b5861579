package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
)

// consoleFlags are the flags of a console driver.
type consoleFlags struct {
	logBytes, rate, keepBytes string
	keep                      int
}

func (f *consoleFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&f.logBytes, "size", "4M", "console driver: size of the log of one VM")
	fl.StringVar(&f.rate, "rate", "256K", "console driver: bytes a second that are logged of one VM; a MiB at once is always")
	fl.IntVar(&f.keep, "keep", 100, "console driver: how many logs of VMs that have ended are kept")
	fl.StringVar(&f.keepBytes, "keep-bytes", "256M", "console driver: how much of the disk all these may take")
}

// config returns what the flags say; nil for other drivers.
func (f *consoleFlags) config(fl *pflag.FlagSet, kind string) (*api.ConsoleConfig, error) {
	if kind != "console" {
		for _, name := range []string{"size", "rate", "keep", "keep-bytes"} {
			if fl.Changed(name) {
				return nil, fmt.Errorf("--%s is for console drivers", name)
			}
		}
		return nil, nil
	}
	c := &api.ConsoleConfig{Keep: f.keep}
	for _, v := range []struct {
		name, text string
		to         *uint64
	}{{"size", f.logBytes, &c.LogBytes}, {"rate", f.rate, &c.Rate}, {"keep-bytes", f.keepBytes, &c.KeepBytes}} {
		n, err := size.Parse(v.text)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", v.name, err)
		}
		if n == 0 {
			return nil, fmt.Errorf("--%s 0 would keep nothing", v.name)
		}
		*v.to = n
	}
	if c.Keep < 1 {
		return nil, fmt.Errorf("--keep %d would keep nothing", c.Keep)
	}
	return c, nil
}
