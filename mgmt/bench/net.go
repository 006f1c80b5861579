package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/bench/load"
)

// netJobs are the network benchmarks with a peer.
var netJobs = []struct {
	name  string
	bytes int
	bar   float64
}{
	{"net_64", 64, 0.5},
	{"net_1500", 1500, 1},
}

var netNames = []string{"net_64", "net_1500"}

// Bounds of one run of a job.
const (
	netRun   = 400 * time.Millisecond
	netTrial = 150 * time.Millisecond
	netWarm  = time.Second
)

// netPath is two NICs with something between them that passes frames on.
type netPath struct {
	name  string
	a, b  *load.NIC
	frame []byte // the header of frames from a to b
}

func (p *netPath) close() {
	for _, n := range []*load.NIC{p.a, p.b} {
		if n != nil {
			n.Close()
		}
	}
}

// dialNet plugs a NIC into each of two sockets. Its queues have so many entries.
func (b *bench) dialNet(name string, sockets [2]string, frame []byte, entries uint16) (p *netPath, err error) {
	p = &netPath{name: name, frame: frame}
	defer func() {
		if err != nil {
			p.close()
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	for i, n := range []**load.NIC{&p.a, &p.b} {
		if err = reachable(sockets[i]); err != nil {
			return p, err
		}
		if *n, err = load.DialNIC(b.ctx, sockets[i], entries); err != nil {
			return p, err
		}
	}
	return p, nil
}

// network measures the switch against testpmd: the same client, which polls two cards, one queue pair each.
func network(b *bench) ([]Result, error) {
	var peers []*netPeer
	defer func() {
		for _, p := range peers {
			p.stop()
		}
	}()
	ours, err := b.startSwitch("net")
	if err != nil {
		return nil, err
	}
	defer b.removeDriver("net")
	defer ours.close()
	for i := range testpmdConfigs {
		t, err := startTestpmd(b.dir, i)
		if err != nil {
			b.progress("%v", err)
			continue
		}
		p := &netPeer{testpmd: t}
		peers = append(peers, p)
		if p.netPath, err = b.dialNet(t.name, t.sockets, ours.frame, load.NICQueueSize); err == nil {
			_, err = p.run(64, netWarm) // until it forwards
		}
		if err != nil {
			return nil, err
		}
	}
	if len(peers) == 0 {
		return nil, fmt.Errorf("%w: no testpmd to compare with", errSkipped)
	}
	var results []Result
	for _, j := range netJobs {
		if !b.wanted(j.name) {
			continue
		}
		r, err := b.compareNet(j.name, j.bytes, ours, peers)
		if err != nil {
			return results, fmt.Errorf("%s: %w", j.name, err)
		}
		r.bar.ratio = j.bar
		results = append(results, r)
	}
	return results, nil
}

// run passes frames of so many bytes for a time.
func (p *netPath) run(bytes int, d time.Duration) (load.StreamResult, error) {
	r, err := load.RunStream(p.a, p.b, load.Stream{Frame: p.frame, Bytes: bytes, Time: d})
	if err != nil {
		err = fmt.Errorf("%s: %w", p.name, err)
	}
	return r, err
}

// netPeer is a testpmd that runs only while it is measured: it polls whether it has work or not.
type netPeer struct {
	*testpmd
	*netPath
}

func (p *netPeer) run(bytes int, d time.Duration) (load.StreamResult, error) {
	if err := p.resume(); err != nil {
		return load.StreamResult{}, err
	}
	r, err := p.netPath.run(bytes, d)
	return r, errors.Join(err, p.pause())
}

func (p *netPeer) stop() {
	if p.netPath != nil {
		p.netPath.close()
	}
	p.testpmd.stop()
}

// compareNet runs a job on the switch, and on the testpmd that does it best.
func (b *bench) compareNet(name string, bytes int, ours *netPath, peers []*netPeer) (Result, error) {
	var best *netPeer
	var bestRate float64
	for _, p := range peers {
		var rates []float64
		for range trials {
			r, err := p.run(bytes, netTrial)
			if err != nil {
				return Result{}, err
			}
			rates = append(rates, r.PerSecond())
		}
		b.progress("%s: %s: %s packets/s", name, p.testpmd.name, number(median(rates)))
		if m := median(rates); m > bestRate {
			best, bestRate = p, m
		}
	}
	if _, err := ours.run(bytes, netWarm); err != nil {
		return Result{}, err
	}
	a, q, err := inTurn(b, name, b.rounds(5, 21),
		func() (load.StreamResult, error) { return ours.run(bytes, netRun) },
		func() (load.StreamResult, error) { return best.run(bytes, netRun) })
	if err != nil {
		return Result{}, err
	}
	rate := load.StreamResult.PerSecond
	r := newResult(name, "packets/s", more, values(a, rate), best.testpmd.name, values(q, rate))
	kicks := func(r load.StreamResult) float64 { return float64(r.Kicks) / float64(r.Sent) }
	lost := func(r load.StreamResult) float64 { return max(0, 100*(1-float64(r.Packets)/float64(r.Sent))) }
	r.note = fmt.Sprintf("one way, frames of %d bytes; doorbells a frame: %.4f, peer %.4f; lost: %.2f %%, peer %.2f %%", bytes,
		median(values(a, kicks)), median(values(q, kicks)), median(values(a, lost)), median(values(q, lost)))
	return r, nil
}

// startSwitch starts a net driver VM with two ports and plugs NICs into them.
func (b *bench) startSwitch(name string) (*netPath, error) {
	d, err := b.startDaemon()
	if err != nil {
		return nil, err
	}
	v, err := d.CreateDriver(b.ctx, api.CreateDriver{Config: api.DriverConfig{
		Name: name, Type: "net", Engine: b.engine, MemoryBytes: driverMemory, HeartbeatMs: int(heartbeat.Milliseconds()),
		Ports: []api.Port{{Name: "a"}, {Name: "b"}}, Socket: true,
	}})
	if err != nil {
		return nil, err
	}
	if len(v.Ports) != 2 {
		return nil, fmt.Errorf("driver %s has ports %+v", name, v.Ports)
	}
	frame, err := udpHeader(v.Ports[0], v.Ports[1])
	if err != nil {
		return nil, err
	}
	return b.dialNet("driver VM", [2]string{v.Ports[0].Socket, v.Ports[1].Socket}, frame, load.NICQueueSize)
}

// udpHeader returns the start of a frame from one port to the other: Ethernet, IPv4, UDP. The lengths in it are those of the shortest frame, and the
// checksums are left out.
func udpHeader(from, to api.Port) ([]byte, error) {
	src, err1 := net.ParseMAC(from.MAC)
	dst, err2 := net.ParseMAC(to.MAC)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	f := append(append([]byte{}, dst...), src...)
	f = append(f, 0x08, 0x00,
		0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0)
	for _, a := range []netip.Prefix{from.Address, to.Address} {
		f = append(f, a.Addr().AsSlice()...)
	}
	return append(f, 0x30, 0x39, 0x30, 0x3a, 0, 30, 0, 0), nil
}

// netRecovery measures how long no frame comes through when the switch is killed: the longest pause that a receiver sees.
func netRecovery(b *bench) ([]Result, error) {
	p, err := b.startSwitch("netcrash")
	if err != nil {
		return nil, err
	}
	defer b.removeDriver("netcrash")
	defer p.close()
	var stalls []float64
	for n := range b.rounds(5, 21) {
		b.progress("net_recover_ms: run %d", n+1)
		d, err := b.crashUnder("netcrash", "kill", func(stop *atomic.Bool, crashed *atomic.Int64) (time.Duration, error) {
			r, err := load.RunStream(p.a, p.b, load.Stream{Frame: p.frame, Bytes: 1500, Stop: stop, From: crashed})
			return r.Stall, err
		})
		if err != nil {
			return nil, err
		}
		stalls = append(stalls, float64(d.Microseconds())/1000)
	}
	r := newResult("net_recover_ms", "ms", less, stalls, "", nil)
	r.bar.most = 100
	r.note, err = b.phases("netcrash", "kill")
	return []Result{r}, err
}
