package serve

import (
	"encoding/json"
	"fmt"
)

// The regions of an attachment.
const (
	RegionRing = iota // a logring
	RegionLog         // a logfile
	regions
)

// Bounds of LogConfig, in bytes a second.
const (
	MinRate = 1 << 10
	MaxRate = 1 << 30
)

// LogConfig is the configuration of an attachment.
type LogConfig struct {
	Run   uint64 `json:"run"`   // what writes to the ring: a number that no other run has
	Rate  uint64 `json:"rate"`  // bytes a second that are logged
	Burst uint64 `json:"burst"` // and how many at once
}

// Text returns the configuration as it goes with an attachment.
func (c LogConfig) Text() (string, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	b, err := json.Marshal(c)
	return string(b), err
}

// ParseLogConfig undoes Text.
func ParseLogConfig(text string) (c LogConfig, err error) {
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("configuration of a log: %w", err)
	}
	return c, c.check()
}

func (c LogConfig) check() error {
	if c.Rate < MinRate || c.Rate > MaxRate || c.Burst < MinRate || c.Burst > MaxRate {
		return fmt.Errorf("a rate of %d bytes a second, %d at once; each can be %d to %d", c.Rate, c.Burst, MinRate, MaxRate)
	}
	return nil
}
