package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	blkserve "github.com/grailos/grail/drivervms/blk/serve"
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/bench/load"
)

var shareNames = []string{"shares_io", "shares_io_p99", "shares_charged"}

// Loads of the shares benchmarks: the one that floods, and the small one.
const (
	floodBlock = 1 << 20
	floodDepth = 256
	floodRest  = 20 * time.Millisecond // of its client between two looks: it leaves the processors to the others, and what is outstanding takes longer
	smallBlock = 4 << 10
	// The small one when it is to have work at all times, so much that its client may be off its processor for a while.
	smallDepth = 256
	busyBlock  = 64 << 10
	floodFrame = 1500
	smallFrame = 64
	// Entries of the cards' queues, so many that a client which is to have work at all times may be off its processor for a while.
	sharedQueue = 1024
	floodMost   = 8 // frames at once, while the latency is measured: both streams are one thread's

	shareLead = 100 * time.Millisecond // from when on the loads run until they are measured
	shareRun  = 700 * time.Millisecond
	shareTail = 150 * time.Millisecond // and from then until they end: a flood's last requests are its alone
	shareWarm = 3 * time.Second        // until the driver has read enough to know what is in the page cache
)

// sharing is a driver with two clients.
type sharing struct {
	b       *bench
	driver  string
	clients [2]string // names: the one that floods, the small one
	costs   share.Costs
	ops     string // counters of a client's operations and bytes
	bytes   []string
	// run has both work for a time, and returns the latencies of the small one if it has one request outstanding.
	run func(flood, small bool, depth int, d time.Duration) (*load.Latencies, error)
}

// sharePoint is what one run got.
type sharePoint struct {
	cost    [2]float64 // a second
	ops     [2]float64 // a second
	p99     time.Duration
	p50     time.Duration
	charged float64 // of the processor time that the driver's VM has used
}

// shares measures what two tenants get of a block driver and of a net driver.
func shares(b *bench) ([]Result, error) {
	var dev, p99, charged []float64
	var notes [3][]string
	for _, open := range []func(*bench) (*sharing, func(), error){shareDisk, shareSwitch} {
		s, end, err := open(b)
		if err == nil {
			err = s.measure(&dev, &p99, &charged, &notes)
		}
		if end != nil {
			end()
		}
		if err != nil {
			return nil, err
		}
	}
	worst := func(name, unit string, v []float64, most float64, note []string) Result {
		r := newResult(name, unit, less, v, "", nil)
		r.Value = quantile(v, 1)
		r.bar.most, r.note = most, strings.Join(note, "\n")
		return r
	}
	c := newResult("shares_charged", "%", more, charged, "", nil)
	c.Value, c.bar.least, c.note = quantile(charged, 0), 97, strings.Join(notes[2], "\n")
	return []Result{worst("shares_io", "%", dev, 5, notes[0]), worst("shares_io_p99", "times", p99, 3, notes[1]), c}, nil
}

// measure runs the loads with both orders of weights.
func (s *sharing) measure(dev, p99, charged *[]float64, notes *[3][]string) error {
	note := func(i int, format string, args ...any) {
		line := s.driver + ": " + fmt.Sprintf(format, args...)
		s.b.progress("%s", line)
		notes[i] = append(notes[i], line)
	}
	rounds := s.b.rounds(3, 7)
	several := func(flood, small bool, depth int) (sum sharePoint, err error) {
		var list []sharePoint
		for range rounds {
			p, err := s.point(flood, small, depth)
			if err != nil {
				return sum, err
			}
			list = append(list, p)
		}
		pick := func(f func(sharePoint) float64) float64 { return median(values(list, f)) }
		for i := range sum.cost {
			sum.cost[i] = pick(func(p sharePoint) float64 { return p.cost[i] })
			sum.ops[i] = pick(func(p sharePoint) float64 { return p.ops[i] })
		}
		sum.p99 = time.Duration(pick(func(p sharePoint) float64 { return float64(p.p99) }))
		sum.p50 = time.Duration(pick(func(p sharePoint) float64 { return float64(p.p50) }))
		sum.charged = pick(func(p sharePoint) float64 { return p.charged })
		return sum, nil
	}
	for _, depth := range []int{smallDepth, 1} {
		if _, err := s.run(true, true, depth, shareWarm); err != nil {
			return err
		}
	}
	alone, err := several(false, true, 1)
	if err != nil {
		return err
	}
	note(1, "the small one alone: %.0f a second, p50 %v, p99 %v", alone.ops[1], alone.p50, alone.p99)
	for _, w := range [][2]uint32{{300, 100}, {100, 300}} {
		for i, c := range s.clients {
			err := s.b.daemon.SetDriverShare(s.b.ctx, s.driver, api.DriverShare{Client: c, Config: share.Config{Limits: share.Limits{Weight: w[i]}}})
			if err != nil {
				return err
			}
		}
		both, err := several(true, true, smallDepth)
		if err != nil {
			return err
		}
		asked, got := float64(w[0])/float64(w[1]), both.cost[0]/both.cost[1]
		*dev = append(*dev, 100*math.Abs(got/asked-1))
		note(0, "both have work at all times, weights %d:%d: asked 1:%.3f, got 1:%.3f by cost (%s and %s /s)", w[0], w[1], 1/asked, 1/got, mibps(both.cost[0]), mibps(both.cost[1]))
		one, err := several(true, true, 1)
		if err != nil {
			return err
		}
		total := one.cost[0] + one.cost[1]
		due := min(alone.cost[1], total*float64(w[1])/float64(w[0]+w[1]))
		short := 100 * max(0, 1-one.cost[1]/due)
		note(0, "the small one has one request outstanding, weights %d:%d: due are %s/s of %s/s, the lesser of its share and of what it gets alone; got %s/s, %.1f %% less",
			w[0], w[1], mibps(due), mibps(total), mibps(one.cost[1]), short)
		*p99 = append(*p99, float64(one.p99)/float64(alone.p99))
		note(1, "flooded, weights %d:%d: %.0f a second, p50 %v, p99 %v; %s/s for the flood", w[0], w[1], one.ops[1], one.p50, one.p99, mibps(one.cost[0]))
		for _, p := range []sharePoint{both, one} {
			*charged = append(*charged, 100*p.charged)
		}
		note(2, "weights %d:%d: %.1f and %.1f %% of the driver's processor time were charged to the two", w[0], w[1], 100*both.charged, 100*one.charged)
	}
	return nil
}

func mibps(n float64) string { return fmt.Sprintf("%.0f MiB", n/(1<<20)) }

// point is one run.
func (s *sharing) point(flood, small bool, depth int) (p sharePoint, err error) {
	var lat *load.Latencies
	over := make(chan error, 1)
	go func() {
		var err error
		lat, err = s.run(flood, small, depth, shareLead+shareRun+shareTail)
		over <- err
	}()
	time.Sleep(shareLead)
	begin := time.Now()
	before, cpu, err := s.look()
	time.Sleep(shareRun)
	seconds := time.Since(begin).Seconds()
	after, cpu2, err2 := s.look()
	if err := errors.Join(err, err2, <-over, s.alive()); err != nil {
		return p, err
	}
	sum := uint64(0)
	for i := range s.clients {
		grown := func(name string) uint64 { return after[i][name] - before[i][name] }
		ops, bytes := grown(s.ops), uint64(0)
		for _, b := range s.bytes {
			bytes += grown(b)
		}
		p.cost[i] = float64(s.costs.Of(int64(ops), int64(bytes))) / seconds
		p.ops[i] = float64(ops) / seconds
		sum += grown("cpuNs")
	}
	p.charged = float64(sum) / float64(cpu2-cpu)
	if lat != nil {
		p.p50, p.p99 = lat.Quantile(0.5), lat.Quantile(0.99)
	}
	return p, nil
}

// alive reports why the driver's first instance is not the one that serves.
func (s *sharing) alive() error {
	list, err := s.b.daemon.Crashes(s.b.ctx, s.driver)
	for _, c := range list {
		err = errors.Join(err, fmt.Errorf("driver %s was replaced meanwhile, so that nothing was measured: %s: %s", s.driver, c.Cause, c.Message))
	}
	return err
}

// look returns the clients' counters, and the processor time that the driver's VM has used, as the host has it.
func (s *sharing) look() (counters [2]map[string]uint64, cpu time.Duration, err error) {
	st, err := s.b.daemon.DriverStats(s.b.ctx, s.driver)
	if err != nil {
		return counters, 0, err
	}
	for i, name := range s.clients {
		for _, c := range st.Clients {
			if c.Disk == name {
				counters[i] = c.Counters
			}
		}
		if counters[i] == nil {
			return counters, 0, fmt.Errorf("driver %s has no client %s", s.driver, name)
		}
	}
	d, err := s.b.daemon.Driver(s.b.ctx, s.driver)
	if err != nil {
		return counters, 0, err
	}
	cpu, err = processTime(d.PID)
	return counters, cpu, err
}

// processTime returns the processor time of all threads of a process.
func processTime(pid int) (sum time.Duration, err error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err == nil && len(threads) == 0 {
		err = fmt.Errorf("process %d is gone", pid)
	}
	for _, t := range threads {
		b, rerr := os.ReadFile(t)
		if rerr != nil {
			continue // the thread has ended
		}
		ran, _, _ := strings.Cut(string(b), " ")
		ns, perr := strconv.ParseInt(ran, 10, 64)
		if perr != nil {
			return 0, perr
		}
		sum += time.Duration(ns)
	}
	return sum, err
}

// shareDisk is a block driver with a disk for each of two clients.
func shareDisk(b *bench) (_ *sharing, end func(), err error) {
	const name = "shares"
	names := [2]string{"flood", "small"}
	var disks []api.Disk
	for _, n := range names {
		path := filepath.Join(b.dir, "shares-"+n+".img")
		if err := makeFile(path, hotBytes); err != nil {
			return nil, nil, err
		}
		disks = append(disks, api.Disk{ID: n, Path: path})
	}
	d, err := b.startDaemon()
	if err != nil {
		return nil, nil, err
	}
	v, err := d.CreateDriver(b.ctx, api.CreateDriver{Config: api.DriverConfig{
		Name: name, Type: "blk", Engine: b.engine, MemoryBytes: driverMemory, HeartbeatMs: int(heartbeat.Milliseconds()), Disks: disks, Socket: true,
	}})
	if err != nil {
		return nil, nil, err
	}
	var clients []*load.Client
	end = func() {
		for _, c := range clients {
			c.Close()
		}
		b.removeDriver(name)
	}
	for i, most := range []struct {
		slots int
		bytes uint32
	}{{floodDepth, floodBlock}, {smallDepth, busyBlock}} {
		if err := reachable(v.Disks[i].Socket); err != nil {
			return nil, end, err
		}
		c, err := load.Dial(b.ctx, v.Disks[i].Socket, most.slots, most.bytes)
		if err != nil {
			return nil, end, err
		}
		clients = append(clients, c)
	}
	return &sharing{b: b, driver: name, clients: names, costs: blkserve.Costs, ops: "ring0.ops", bytes: []string{"ring0.bytes"},
		run: func(flood, small bool, depth int, d time.Duration) (lat *load.Latencies, err error) {
			var stop atomic.Bool
			done := make(chan error, 1)
			if flood {
				go func() {
					_, err := clients[0].Run(load.Job{Block: floodBlock, Depth: floodDepth, Rest: floodRest, Stop: &stop})
					done <- err
				}()
			} else {
				done <- nil
			}
			j := load.Job{Random: true, Block: busyBlock, Depth: depth, Time: d}
			if depth == 1 {
				lat = &load.Latencies{}
				j.Block, j.Latencies = smallBlock, lat
			}
			if small {
				_, err = clients[1].Run(j)
			}
			stop.Store(true)
			return lat, errors.Join(err, <-done)
		}}, end, nil
}

// shareSwitch is a net driver with two pairs of ports, one pair a client.
func shareSwitch(b *bench) (_ *sharing, end func(), err error) {
	const name = "netshares"
	d, err := b.startDaemon()
	if err != nil {
		return nil, nil, err
	}
	v, err := d.CreateDriver(b.ctx, api.CreateDriver{Config: api.DriverConfig{
		Name: name, Type: "net", Engine: b.engine, MemoryBytes: driverMemory, HeartbeatMs: int(heartbeat.Milliseconds()),
		Ports: []api.Port{{Name: "flood", Tenant: 1}, {Name: "sink", Tenant: 1}, {Name: "small", Tenant: 2}, {Name: "sink2", Tenant: 2}}, Socket: true,
	}})
	if err != nil {
		return nil, nil, err
	}
	var paths []*netPath
	end = func() {
		for _, p := range paths {
			p.close()
		}
		b.removeDriver(name)
	}
	for i := 0; i < 4; i += 2 {
		frame, err := udpHeader(v.Ports[i], v.Ports[i+1])
		if err != nil {
			return nil, end, err
		}
		p, err := b.dialNet("driver VM", [2]string{v.Ports[i].Socket, v.Ports[i+1].Socket}, frame, sharedQueue)
		if err != nil {
			return nil, end, err
		}
		paths = append(paths, p)
	}
	return &sharing{b: b, driver: name, clients: [2]string{"flood", "small"}, costs: vswitch.Costs, ops: "txPackets", bytes: []string{"txBytes"},
		run: func(flood, small bool, depth int, d time.Duration) (lat *load.Latencies, err error) {
			var pairs []load.Pair
			most := 0
			if depth == 1 {
				most = floodMost
			}
			if flood {
				pairs = append(pairs, load.Pair{A: paths[0].a, B: paths[0].b, Stream: load.Stream{Frame: paths[0].frame, Bytes: floodFrame, Time: d, Most: most}})
			}
			if small {
				s := load.Stream{Frame: paths[1].frame, Bytes: smallFrame, Time: d, Most: most}
				if depth == 1 {
					lat = &load.Latencies{}
					s.Depth, s.Latencies = 1, lat
				}
				pairs = append(pairs, load.Pair{A: paths[1].a, B: paths[1].b, Stream: s})
			}
			_, err = load.RunStreams(pairs)
			return lat, err
		}}, end, nil
}
