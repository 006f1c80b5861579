package share

import (
	"fmt"
	"math"
)

// Bounds of a Config.
const (
	DefaultWeight = 100
	MaxWeight     = 10000
	MaxDepth      = 8 // groups above a client
	MaxRate       = math.MaxInt64 / 1000
	maxName       = 512 // a tenant's path
)

// Limits is what a client or a group of clients gets of a driver.
type Limits struct {
	// Weight is its part, beside its siblings', of what is left when guarantees are served, 1 to MaxWeight; 0 means DefaultWeight.
	Weight uint32 `json:"weight,omitempty"`
	// Caps, a second: what it never gets more of; 0: none. An operation is a request, or a frame that it sends.
	OpsCap   uint64 `json:"opsCap,omitempty"`
	BytesCap uint64 `json:"bytesCap,omitempty"`
	// Guarantees, a second: what it gets before others get anything, if it asks for it; 0: none. They can only be kept
	// if together they are less than what the device can do.
	OpsGuarantee   uint64 `json:"opsGuarantee,omitempty"`
	BytesGuarantee uint64 `json:"bytesGuarantee,omitempty"`
}

// Config is what a driver is told of one client, in JSON. Its zero value is a client of the default weight and nothing else.
type Config struct {
	Limits
	// Groups are those that the client is in, the outermost first. The name identifies a group in the whole driver; its limits are those that were
	// said last.
	Groups []Group `json:"groups,omitempty"`
}

// Group is one group of clients: a tenant.
type Group struct {
	Name string `json:"name"`
	Limits
}

// Check reports what is wrong with l, or nil.
func (l Limits) Check() error {
	if l.Weight > MaxWeight {
		return fmt.Errorf("weight %d; it can be 1 to %d", l.Weight, MaxWeight)
	}
	for _, r := range []struct {
		name           string
		cap, guarantee uint64
	}{{"operations", l.OpsCap, l.OpsGuarantee}, {"bytes", l.BytesCap, l.BytesGuarantee}} {
		if r.cap > MaxRate || r.guarantee > MaxRate {
			return fmt.Errorf("%s a second: more than %d", r.name, uint64(MaxRate))
		}
		if r.cap > 0 && r.guarantee > r.cap {
			return fmt.Errorf("%d %s a second are guaranteed, which is more than the cap of %d", r.guarantee, r.name, r.cap)
		}
	}
	return nil
}

// Check reports what is wrong with c, or nil.
func (c Config) Check() error {
	if err := c.Limits.Check(); err != nil {
		return err
	}
	if len(c.Groups) > MaxDepth {
		return fmt.Errorf("%d groups one in the other; there can be %d", len(c.Groups), MaxDepth)
	}
	seen := map[string]bool{}
	for _, g := range c.Groups {
		if g.Name == "" || len(g.Name) > maxName || seen[g.Name] {
			return fmt.Errorf("group %q: want different names of 1 to %d bytes", g.Name, maxName)
		}
		seen[g.Name] = true
		if err := g.Limits.Check(); err != nil {
			return fmt.Errorf("group %s: %w", g.Name, err)
		}
	}
	return nil
}

// weight returns l.Weight, or the default.
func (l Limits) weight() int64 {
	if l.Weight == 0 {
		return DefaultWeight
	}
	return int64(l.Weight)
}
