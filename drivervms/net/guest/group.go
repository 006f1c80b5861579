package main

import (
	"errors"
	"fmt"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/drivervms/share"
)

// group is the queues of one port. A native client's attachment brings all of them; with vhost-user each queue is an attachment
// of its own, since front ends start and stop them one by one. The switch serves the pairs that are complete.
type group struct {
	id       uint64 // in the switch: the first attachment's
	cfg      vswitch.PortConfig
	features uint64
	gets     share.Config
	dead     bool // it broke a ring's rules: not served until all of it is detached
	parts    map[uint16]part
}

// part is one queue, and the attachment that brought it.
type part struct {
	id uint64
	q  vswitch.Queue
}

// members returns the attachments of g.
func (g *group) members() map[uint64]bool {
	m := map[uint64]bool{}
	for _, p := range g.parts {
		m[p.id] = true
	}
	return m
}

// drop removes what attachment id has brought.
func (g *group) drop(id uint64) {
	for i, p := range g.parts {
		if p.id == id {
			delete(g.parts, i)
		}
	}
}

// serve has the switch serve g's complete pairs, and nothing else of it. Nobody sees that it stops for a moment: the rings say where to
// go on.
func (g *group) serve(s *vswitch.Switch) error {
	s.Detach(g.id)
	c := vswitch.Client{ID: g.id, Config: g.cfg, Features: g.features, Share: g.gets}
	for i := uint16(0); ; i += 2 {
		rx, ok1 := g.parts[i]
		tx, ok2 := g.parts[i+1]
		if !ok1 || !ok2 {
			break
		}
		c.Queues = append(c.Queues, rx.q, tx.q)
	}
	if len(c.Queues) == 0 || g.dead {
		return nil
	}
	return s.Attach(c)
}

// share changes what the port of attachment id gets beside the others.
func (d *driver) share(id uint64, cfg share.Config) error {
	g := d.of[id]
	if g == nil {
		return vswitch.ErrUnknown
	}
	g.gets = cfg
	if err := d.sw.SetShare(g.id, cfg); !errors.Is(err, vswitch.ErrUnknown) {
		return err
	}
	return nil // it is not complete, or broke a rule: then for later
}

// join adds the queues of attachment id to the group that they belong to. What was said last of what the port gets holds.
func (d *driver) join(id uint64, cfg vswitch.PortConfig, gets share.Config, features uint64, queues map[uint16]vswitch.Queue) error {
	if err := cfg.Check(); err != nil {
		return err
	}
	g := d.groups[cfg.MAC]
	if g == nil {
		g = &group{id: id, cfg: cfg, features: features, parts: map[uint16]part{}}
	}
	if g.dead {
		return fmt.Errorf("port %s broke a ring's rules: detach the rest of it first", cfg.MAC)
	}
	if g.cfg != cfg || g.features != features {
		return fmt.Errorf("%w: %s", vswitch.ErrInUse, cfg.MAC)
	}
	for i := range queues {
		if _, ok := g.parts[i]; ok {
			return fmt.Errorf("%w: queue %d of %s", vswitch.ErrInUse, i, cfg.MAC)
		}
	}
	g.gets = gets
	for i, q := range queues {
		g.parts[i] = part{id: id, q: q}
	}
	if err := g.serve(d.sw); err != nil {
		g.drop(id)
		return errors.Join(err, g.serve(d.sw))
	}
	d.groups[cfg.MAC], d.of[id] = g, g
	return nil
}

// part takes the queues of attachment id out of their group.
func (d *driver) part(id uint64) {
	g := d.of[id]
	if g == nil {
		return
	}
	delete(d.of, id)
	g.drop(id)
	if err := g.serve(d.sw); err != nil {
		fmt.Printf("net: the rest of port %s is no longer served: %v\n", g.cfg.Name, err)
	}
	if len(g.parts) == 0 {
		delete(d.groups, g.cfg.MAC)
	}
}
