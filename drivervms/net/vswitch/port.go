package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// Client is one attachment: a client's memory and queues on one port.
type Client struct {
	ID       uint64
	Config   PortConfig
	Features uint64 // negotiated virtio features
	Memory   *ring.Memory
	Queues   []Queue      // in pairs: receive, transmit, as virtio numbers them
	Share    share.Config // what it gets beside the others
}

// Queue is one queue of a Client.
type Queue struct {
	ring.Queue              // Features are taken from the Client
	Memory     *ring.Memory // nil: the Client's
	Kick, Call ring.Doorbell
}

// Errors of Attach.
var (
	ErrAttached = errors.New("attachment is already served")
	ErrUnknown  = errors.New("there is no such attachment")
	ErrInUse    = errors.New("address is in use by another port")
)

// port is a Client that is served.
type port struct {
	sw       *Switch
	id       uint64
	cfg      PortConfig
	features uint64
	mac      uint64
	ip       uint32 // 0: none
	gateway  uint32
	own      uint32 // the switch's address, as this port sees it
	local6   [16]byte
	longest  int
	learned  int
	rx       []*rxQueue
	tx       []*txQueue
	tenant   *tenant
	flood    bucket
	service  bucket
	count    *Counters
	share    *share.Client
	next     int  // transmit queue whose turn it is
	stalled  bool // a sender waited in vain for its buffers, and none was used since
	dead     bool
}

// tenant is the ports that see each other.
type tenant struct {
	ports []*port
	names map[string]uint32 // lower case, without domain
}

// Bounds of what a port may ask of the services.
const (
	serviceRate  = 200
	serviceBurst = 100
)

// Attach starts to serve c, from each queue's used index on; see the package's comment. It rings every call doorbell
// once, since an earlier switch may have died between completion and doorbell. The client's memory stays mapped
// until Detach has returned. Errors: ErrAttached, ErrInUse; what PortConfig.Check says; a queue that lies outside of the memory.
// After an error nothing is served.
func (s *Switch) Attach(c Client) error {
	if s.ports[c.ID] != nil {
		return fmt.Errorf("%w: %d", ErrAttached, c.ID)
	}
	if err := c.Config.Check(); err != nil {
		return err
	}
	if len(s.ports) >= MaxPorts {
		return fmt.Errorf("%d ports, the limit is %d", len(s.ports)+1, MaxPorts)
	}
	if len(c.Queues) == 0 || len(c.Queues)%2 != 0 || len(c.Queues) > 2*MaxPairs {
		return fmt.Errorf("%d queues: want 1 to %d pairs", len(c.Queues), MaxPairs)
	}
	if c.Features&ring.FeatureVersion1 == 0 {
		return errors.New("legacy virtio is not supported: VIRTIO_F_VERSION_1 is missing")
	}
	cfg := c.Config.withDefaults()
	p := &port{
		sw: s, id: c.ID, cfg: cfg, features: c.Features, mac: cfg.MAC.key(), local6: linkLocal(cfg.MAC),
		longest: int(cfg.MTU) + ethHeader,
		flood:   newBucket(cfg.FloodRate, cfg.FloodBurst, s.now), service: newBucket(serviceRate, serviceBurst, s.now),
	}
	if cfg.Addr.IsValid() {
		p.ip = number(cfg.Addr.Addr().As4())
	}
	if cfg.Gateway.IsValid() {
		p.gateway = number(cfg.Gateway.As4())
	}
	if cfg.Service.IsValid() {
		p.own = number(cfg.Service.As4())
	}
	if s.macs[p.mac] != nil || p.ip != 0 && s.addrs[p.ip] != nil || cfg.Addr6.IsValid() && s.addrs6[cfg.Addr6.As16()] != nil {
		return fmt.Errorf("%w: %s, %s", ErrInUse, cfg.MAC, cfg.Addr)
	}
	if err := p.open(&c); err != nil {
		return err
	}
	var err error
	if p.share, err = s.sched.Add(p, c.Share); err != nil {
		return err
	}
	s.ports[p.id] = p
	p.count = s.countersOf(p.key())
	s.enter(p)
	s.revive(p)
	for i, q := range c.Queues {
		if i%2 == 0 {
			s.poller.Add(p.rx[i/2], q.Kick)
		} else {
			s.poller.Add(p.tx[i/2], q.Kick)
			s.tx = append(s.tx, p.tx[i/2])
		}
	}
	for _, q := range c.Queues {
		if err := q.Call.Ring(); err != nil {
			s.kill(p, err)
			break
		}
	}
	return nil
}

// open makes the devices of p's queues.
func (p *port) open(c *Client) error {
	for i, q := range c.Queues {
		q.Features = c.Features
		mem := q.Memory
		if mem == nil {
			mem = c.Memory
		}
		at, err := mem.Slice(q.Used, 4)
		if err != nil {
			return fmt.Errorf("queue %d: used ring: %w", i, err)
		}
		dev, err := ring.NewDevice(mem, ring.DeviceConfig{
			Queue: q.Queue, LastAvail: binary.LittleEndian.Uint16(at[2:]), MaxSegments: maxChain,
		})
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		if i%2 == 0 {
			dev.Disarm() // nobody waits for buffers yet
			p.rx = append(p.rx, &rxQueue{p: p, dev: dev, call: q.Call, merge: c.Features&virtionet.FeatureMergeable != 0})
		} else {
			p.tx = append(p.tx, &txQueue{p: p, index: i / 2, dev: dev, call: q.Call, done: make([]uint16, 0, q.Size)})
		}
	}
	return nil
}

// maxChain bounds the segments of one frame.
const maxChain = 256

// enter makes p known by its addresses.
func (s *Switch) enter(p *port) {
	t := s.tenants[p.cfg.Tenant]
	if t == nil {
		t = &tenant{}
		s.tenants[p.cfg.Tenant] = t
	}
	p.tenant = t
	t.ports = append(t.ports, p)
	if len(s.macs) == 0 && s.up != nil {
		s.up.open()
	}
	s.macs[p.mac] = p
	if p.ip != 0 {
		s.addrs[p.ip] = p
	}
	if p.cfg.Addr6.IsValid() {
		s.addrs6[p.cfg.Addr6.As16()] = p
	}
	s.table.add(p.mac, p)
}

// leave undoes enter. What the port has learned is for its next client, unless this one broke the rules.
func (s *Switch) leave(p *port, broken bool) {
	if broken {
		s.noteBack(p.key(), false)
	} else {
		s.shelve(p)
	}
	t := p.tenant
	kept := make([]*port, 0, len(t.ports)) // a new slice: a frame may be on its way to the old one
	for _, o := range t.ports {
		if o != p {
			kept = append(kept, o)
		}
	}
	if t.ports = kept; len(kept) == 0 && t.names == nil {
		delete(s.tenants, p.cfg.Tenant)
	}
	delete(s.macs, p.mac)
	delete(s.addrs, p.ip)
	if p.cfg.Addr6.IsValid() {
		delete(s.addrs6, p.cfg.Addr6.As16())
	}
	s.table.forget(p)
	if len(s.macs) == 0 && s.up != nil {
		s.up.shut()
	}
}

// Detach ends the service of the attachment. It returns the index of each queue's next request. Unknown IDs are no error: the
// attachment is not served, as wished.
func (s *Switch) Detach(id uint64) (lastAvail []uint16) {
	p := s.ports[id]
	if p == nil {
		return nil
	}
	s.publish()
	s.poller.Flush() // the caller may be about to close the doorbells
	for i := range p.rx {
		for _, d := range []*ring.Device{p.rx[i].dev, p.tx[i].dev} {
			lastAvail = append(lastAvail, d.LastAvail()-uint16(d.InFlight()))
		}
	}
	if !p.dead {
		p.dead = true
		s.drop(p, false)
	}
	delete(s.ports, id)
	s.account() // for the last time
	for i := range p.rx {
		s.meter.Forget(&p.rx[i].use.Account)
		s.meter.Forget(&p.tx[i].use.Account)
	}
	return lastAvail
}

// Counters returns what the attachment counted, and false when there is none.
func (s *Switch) Counters(id uint64) (Counters, bool) {
	p := s.ports[id]
	if p == nil {
		return Counters{}, false
	}
	return *p.count, true
}

// kill stops serving p, whose ring broke a rule, until it is detached.
func (s *Switch) kill(p *port, why error) {
	if p.dead {
		return
	}
	p.dead = true
	s.drop(p, true)
	s.Deaths = append(s.Deaths, Death{ID: p.id, Reason: fmt.Sprintf("%s: %v", p.cfg.Name, why)})
}

// drop takes p's queues out of the rounds, and p out of sight of the others.
func (s *Switch) drop(p *port, broken bool) {
	kept := make([]*txQueue, 0, len(s.tx)) // a new slice: a round may be going over the old one
	for _, q := range s.tx {
		if q.p != p {
			kept = append(kept, q)
		}
	}
	s.tx = kept
	s.sched.Remove(p.share)
	for i := range p.tx {
		p.tx[i].release()
		s.poller.Remove(p.tx[i])
		s.poller.Remove(p.rx[i])
	}
	s.leave(p, broken)
}
