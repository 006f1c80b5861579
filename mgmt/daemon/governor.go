package daemon

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/tenant"
)

// The kernel's scheduler divides each processor by the groups' weights. How it places their threads on the processors is less exact, and a group whose
// weight on a processor changes while it runs keeps its lead over a lighter one for long (seen in 6.18). The governor measures what every domain gets, and has the siblings of one that wants more and has had too little hold back. Its caps
// are in the groups of a domain only while the processors are contended. Without it, when graild is not there, what remains is what the kernel does.

// Rhythm of the governor.
const (
	governPeriod = 100 * time.Millisecond
	// governCost is the most of one processor that it may use: with many domains it looks less often.
	governCost = 0.01
	// hungryPart is the part of an interval for which a domain's threads may wait for a processor and lack nothing, in percent.
	hungryPart = 2
	// There is enough for everybody when so much of the machine is idle, in percent, and at least so much of a core. Less than that is idle where those
	// that are held back keep a processor for themselves, and also for a tick of the clock now and then.
	idlePart = 2
	idleCore = tenant.Milli(500)
	// idleLoss is how much of the machine is idle with caps in force that nobody could have used, in percent.
	idleLoss = 3
	// idleMemory is how much of what was idle on average before still counts: the clock ticks ten times in a look.
	idleMemory = 0.9
)

// governor is the state of the loop.
type governor struct {
	dm      *domains
	steer   map[tenant.Key]*tenant.Steering // by parent
	used    map[tenant.Key]uint64           // ns
	threads map[tenant.Key]threads          // of those that had less than their part
	idle    float64                         // ms of a core in a second, on average
	at      time.Time
	machine machineTime
	beside  beside
}

// threads are those of a domain, by number.
type threads map[int]threadTime

// governNice is the priority of the governor's thread, if graild may choose one: it is needed most where there is least time.
const governNice = -20

// govern runs until graild ends. Its thread, whose processor time is measured, is its own and ends with it.
func (d *Daemon) govern() {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), governNice)
	r, w, err := os.Pipe()
	if err != nil {
		d.log.Error("govern", "error", err)
		return
	}
	defer r.Close()
	go func() {
		<-d.closing
		w.Close()
	}()
	g := &governor{dm: d.domains}
	g.forget()
	for pause := governPeriod; ; {
		// A timer of the runtime's would end on a thread without that priority.
		fds := []unix.PollFd{{Fd: int32(r.Fd())}}
		if _, err := unix.Poll(fds, int(pause/time.Millisecond)); err != nil && err != unix.EINTR {
			d.log.Error("govern", "error", err)
			return
		}
		if fds[0].Revents != 0 {
			g.release()
			return
		}
		before := threadTimeUsed()
		g.look()
		pause = max(governPeriod, time.Duration(float64(threadTimeUsed()-before)/governCost))
	}
}

// release lifts the caps, as nobody else would, and removes groups that are empty by now.
func (g *governor) release() {
	g.dm.mu.Lock()
	defer g.dm.mu.Unlock()
	if len(g.dm.steered) > 0 || g.dm.raised > 0 {
		g.dm.steered, g.dm.raised = nil, 0
		g.dm.sync()
	}
	g.dm.sweep()
}

// forget begins anew: nothing is known of what went before.
func (g *governor) forget() {
	g.steer, g.used, g.threads = map[tenant.Key]*tenant.Steering{}, map[tenant.Key]uint64{}, nil
	g.beside, g.idle = beside{}, 0
}

// threadTimeUsed returns the processor time that the calling thread has used.
func threadTimeUsed() time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &ru); err != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// look measures, and corrects.
func (g *governor) look() {
	begin := time.Now()
	total := tenant.Milli(runtime.NumCPU() * 1000)
	dt, idle := begin.Sub(g.at), total
	if now, ok := readMachine(); ok {
		idle = now.since(g.machine).idleOf(total)
		g.machine = now
	}
	g.at = begin
	dm := g.dm
	dm.mu.Lock()
	defer dm.mu.Unlock()
	if idle >= max(total*idlePart/100, idleCore) && !dm.capped() || len(dm.groups) < 2 {
		if len(dm.steered) > 0 || dm.raised > 0 {
			dm.steered, dm.raised = nil, 0
			dm.sync()
		}
		g.forget()
		return
	}
	raised := dm.raised
	g.idle = g.idle*idleMemory + float64(idle)*(1-idleMemory)
	caps := g.measure(dt, max(tenant.Milli(g.idle)-total*idleLoss/100, 0))
	if !equalCaps(caps, dm.steered) || dm.raised != raised {
		dm.steered = caps
		dm.sync()
	}
}

// capped reports whether something that runs has a cap of its own, below which there is contention while the machine is idle. The caller holds
// dm.mu.
func (dm *domains) capped() bool {
	for k := range dm.groups {
		if s, _ := dm.tree.Share(k); s.CPU.Cap > 0 && k.Kind == tenant.Tenant {
			return true
		}
	}
	return false
}

// measure returns the caps of those that have had more than their part, of an interval in which so much was idle. The caller holds dm.mu.
func (g *governor) measure(dt time.Duration, idle tenant.Milli) map[tenant.Key]tenant.Milli {
	dm := g.dm
	used, got := map[tenant.Key]uint64{}, map[tenant.Key]tenant.Milli{}
	fresh := false
	for k, group := range dm.groups {
		u, err := dm.fence.Usage(group)
		if err != nil {
			continue
		}
		used[k] = u.UsedNs
		if was, ok := g.used[k]; ok && dt > 0 {
			got[k] = tenant.Milli((u.UsedNs - was) * 1000 / uint64(dt))
		} else {
			fresh = true
		}
	}
	g.used = used
	if fresh {
		g.threads = nil
		return dm.steered
	}
	for _, k := range dm.tree.Children(tenant.HostKey) {
		got[tenant.HostKey] += got[k]
	}
	caps := map[tenant.Key]tenant.Milli{}
	begun := g.threads != nil
	seen := map[tenant.Key]threads{}
	for parent := range dm.parents() {
		given := map[tenant.Key]tenant.Given{}
		var has tenant.Milli
		for _, k := range dm.tree.Children(parent) {
			if u, ok := got[k]; ok {
				given[k] = tenant.Given{Used: u}
				has += u
			}
		}
		if len(given) < 2 {
			continue
		}
		due := func(has tenant.Milli, demand map[tenant.Key]tenant.Milli) map[tenant.Key]tenant.Milli {
			return dm.tree.Divide(parent, has, demand)
		}
		// Only of those that had less than their part matters whether they wanted more; others are taken at their word.
		for k, d := range due(has, nil) {
			u := given[k]
			u.Wanted = tenant.Everything
			if u.Used < d {
				now := threads{}
				dm.look(k, now)
				if was, ok := g.threads[k]; ok && dm.steered[k] == 0 { // a cap has threads wait without a trace
					u.Wanted = u.Used + now.lacked(was, dt)
				} else if !begun {
					u.Wanted = u.Used // nobody is held back for one of whom nothing is known yet
				}
				seen[k] = now
			}
			given[k] = u
		}
		if parent == tenant.HostKey {
			g.beside.add(has, dm.owed(given), dt)
			if r, ok := g.beside.rivalry(g.machine); ok {
				dm.raised = raise(dm.raised, dm.least, r)
			}
		}
		if g.steer[parent] == nil {
			g.steer[parent] = &tenant.Steering{}
		}
		for k, c := range g.steer[parent].Step(dt, dm.room(parent, idle, got), given, due) {
			caps[k] = c
		}
	}
	g.threads = seen
	return caps
}

// room returns what the children of a node could have used besides, of what was idle while domains used got. The caller holds dm.mu.
func (dm *domains) room(parent tenant.Key, idle tenant.Milli, got map[tenant.Key]tenant.Milli) tenant.Milli {
	for k := parent; ; k = tenant.Of(dm.tree.Parent(k)) {
		s, _ := dm.tree.Share(k)
		for _, c := range []tenant.Milli{s.CPU.Cap, dm.steered[k]} {
			if c > 0 {
				idle = min(idle, max(c-got[k], 0))
			}
		}
		if k == tenant.HostKey {
			return idle
		}
	}
}

// owed returns what the host's children are guaranteed together, as far as they want it. The caller holds dm.mu.
func (dm *domains) owed(given map[tenant.Key]tenant.Given) (sum tenant.Milli) {
	for k, u := range given {
		s, _ := dm.tree.Share(k)
		g := max(s.CPU.Guarantee, s.CPU.RealTime.Milli())
		if u.Wanted <= u.Used || k == ownKey {
			g = min(g, u.Used)
		}
		sum += g
	}
	return sum
}

// rivalry is what the host's children together and the host's processes got of the processors in a while.
type rivalry struct {
	Owed tenant.Milli // to the children, out of what there was
	Got  tenant.Milli // by the children
	Rest tenant.Milli // what there was beside what is owed to them
	Host tenant.Milli // got by the host's processes
}

// beside sums up for a rivalry. The zero value is ready for use.
type beside struct {
	begin     machineTime
	got, owed float64 // ms of a core
	time      time.Duration
}

// besideTime is how long it is summed up for a rivalry: what is known of the processors comes in ticks of 10 ms.
const besideTime = time.Second

func (b *beside) add(got, owed tenant.Milli, dt time.Duration) {
	b.got += float64(got) * dt.Seconds()
	b.owed += float64(owed) * dt.Seconds()
	b.time += dt
}

// rivalry returns what was summed up when that has been for long enough, and begins anew.
func (b *beside) rivalry(now machineTime) (r rivalry, ok bool) {
	m := now.since(b.begin)
	first := b.begin == machineTime{}
	if !first && b.time < besideTime {
		return r, false
	}
	if !first && m.all > 0 && m.stolen < m.all {
		total := float64(runtime.NumCPU() * 1000)
		there := total * float64(m.all-m.stolen) / float64(m.all)
		busy := total * float64(m.all-m.stolen-m.idle) / float64(m.all)
		// What others on the same hardware have taken all lose alike: no weight brings it back.
		owed := b.owed / b.time.Seconds() * there / total
		got := b.got / b.time.Seconds()
		r, ok = rivalry{Owed: tenant.Milli(owed), Got: tenant.Milli(got), Rest: tenant.Milli(there - owed), Host: tenant.Milli(max(busy-got, 0))}, true
	}
	*b = beside{begin: now}
	return r, ok
}

// How fast the top group's weight follows what is needed, and how close is close enough.
const (
	raiseMost = 4.0
	lowerMost = 0.5
	owedSlack = tenant.Milli(10)
)

// raise returns the weight of the top group beside the host's processes with which the guarantees are kept; 0 where the least one suffices. The
// kernel divides by weights: what each side had for the last one tells what the next one has to be. It is more only where the host's processes have
// had more than the rest: a child that did not get its guarantee though they have not lacks something else.
func raise(weight, least uint64, r rivalry) uint64 {
	by := float64(r.Owed) / float64(max(r.Got, 1)) * float64(r.Host) / float64(max(r.Rest, 1))
	switch {
	case r.Host > r.Rest+owedSlack:
		by = min(max(by, 1), raiseMost)
	case r.Host+owedSlack < r.Rest:
		by = min(max(by, lowerMost), 1)
	default:
		by = 1
	}
	if weight = uint64(float64(max(weight, least)) * by); weight <= least {
		return 0
	}
	return min(weight, fence.Parts)
}

// parents returns the nodes that have children in which something runs. The caller holds dm.mu.
func (dm *domains) parents() map[tenant.Key]bool {
	m := map[tenant.Key]bool{}
	for k := range dm.groups {
		m[tenant.Of(dm.tree.Parent(k))] = true
	}
	return m
}

// look adds the threads in a node. The caller holds dm.mu.
func (dm *domains) look(key tenant.Key, to threads) {
	for _, pid := range dm.fence.Procs(dm.groups[key]) {
		dir := "/proc/" + strconv.Itoa(pid) + "/task/"
		tasks, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				to[tid] = readThread(dir + t.Name())
			}
		}
	}
	for _, k := range dm.tree.Children(key) {
		if dm.groups[k] != "" {
			dm.look(k, to)
		}
	}
}

// lacked returns how much more than they got threads would have used at most in the interval since was, on average; 0 where none is ready now: who
// sleeps had what it wanted, if late, and 60 idle VMs wait for their turns all the time, and want next to nothing.
func (now threads) lacked(was threads, dt time.Duration) tenant.Milli {
	var waited time.Duration
	ready := false
	for tid, t := range now {
		before, ok := was[tid]
		if !ok || t.ran < before.ran || t.waited < before.waited {
			continue // a new one
		}
		wait := time.Duration(t.waited - before.waited)
		if t.ready() && t.ran == before.ran {
			wait = dt // the kernel accounts for it when it ends
		}
		waited += min(wait, dt)
		ready = ready || t.ready()
	}
	if !ready || waited <= dt*hungryPart/100 {
		return 0
	}
	return tenant.Milli(int64(waited) * 1000 / int64(dt))
}

func equalCaps(a, b map[tenant.Key]tenant.Milli) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// machineTime is what the processors did since the start, in ticks of USER_HZ (proc(5), /proc/stat).
type machineTime struct{ all, idle, stolen uint64 }

func readMachine() (m machineTime, ok bool) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, false
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	const idle, wait, steal = 4, 5, 8 // guest time, behind it, is counted in user time
	if len(f) <= steal {
		return m, false
	}
	for i := 1; i <= steal; i++ {
		n, _ := strconv.ParseUint(f[i], 10, 64)
		m.all += n
		switch i {
		case idle, wait:
			m.idle += n
		case steal:
			m.stolen += n
		}
	}
	return m, true
}

// since returns what the processors did after before.
func (m machineTime) since(before machineTime) machineTime {
	if m.all <= before.all {
		return machineTime{}
	}
	return machineTime{m.all - before.all, m.idle - before.idle, m.stolen - before.stolen}
}

// idleOf returns how much of the processors was idle, out of total.
func (m machineTime) idleOf(total tenant.Milli) tenant.Milli {
	if m.all == 0 {
		return total
	}
	return tenant.Milli(uint64(total) * m.idle / m.all)
}
