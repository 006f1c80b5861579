package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/blk"
	"github.com/grailos/grail/drivervms/console"
	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/engine"
	"github.com/grailos/grail/mgmt/place"
)

// driverInstance is one instance of a driver VM.
type driverInstance struct {
	*instance
	status     *os.File // abi.StatusSize bytes, written by the guest
	hostStatus *os.File // see hv.Spec.HostStatus
	state      *os.File // what the driver passes on to the next instance, or nil
	adopted    bool     // a predecessor of this graild started it
	program    string   // digest; see programPath
	hung       chan struct{}
	hungSince  atomic.Int64 // Unix nanoseconds of the last sign of life, set before hung is closed
	hungOnce   atomic.Bool
	taken      chan struct{}          // closed when a spare becomes the driver
	booted     atomic.Bool            // of a spare: it takes clients
	stalled    atomic.Pointer[string] // it is hung in that this stood still although it beats, set before hung is closed
	starved    atomic.Bool            // its program got no memory, and is dying of that, set before hung is closed
	lied       atomic.Pointer[string] // it is hung in that it broke this rule of a ring, set before hung is closed

	mu     sync.Mutex
	strays map[uint64]bool // an adopted instance serves them for a portal that was not asked yet
}

// Names of the descriptors that a driver's grailvm keeps for the next graild, as Disk of pseudo-attachments.
const (
	keepStatus  = "status"
	keepBacking = "backing:" // + disk ID
)

// launchDriver starts the next instance of a driver, of the program with that digest; see programPath.
func (d *Daemon) launchDriver(dr *driver, generation int, digest string) (*driverInstance, error) {
	inst, err := d.launchProgram(dr, roleDriver, generation, digest, func(inst *driverInstance, l *hv.Launch) error {
		l.Spec.Argv = []string{dr.rec.Config.Type}
		if err := inst.newState(l, dr.rec.Config.Type); err != nil {
			return err
		}
		for _, b := range dr.backings {
			rights := abi.RightRead | abi.RightWrite
			if b.readOnly {
				rights = abi.RightRead
			}
			l.Spec.Caps = append(l.Spec.Caps, hv.CapSpec{Kind: abi.CapDevice, Name: b.id, Rights: rights, FD: l.Add(b.file), Size: b.size})
			l.Spec.Attachments = append(l.Spec.Attachments, hv.Attachment{Disk: keepBacking + b.id, Log: -1,
				ReadOnly: b.readOnly, Regions: []hv.AttachMem{{FD: l.Add(b.file), Size: b.size}}})
		}
		dr.mu.Lock()
		up := dr.uplink
		dr.mu.Unlock()
		up.addTo(l)
		return nil
	})
	if err == nil {
		dr.join(inst.proc.PID)
	}
	return inst, err
}

// launchProgram starts the driver's program with that digest in a VM that has what every driver VM has, and what add gives it.
func (d *Daemon) launchProgram(dr *driver, r role, generation int, digest string, add func(*driverInstance, *hv.Launch) error) (_ *driverInstance, err error) {
	cfg := dr.config()
	vmm, err := place.Program("grailvm")
	if err != nil {
		return nil, err
	}
	path, err := dr.programPath(digest)
	if err != nil {
		return nil, err
	}
	program, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	chosen, kvm, _, err := engine.Choose(cfg.Engine)
	if err != nil {
		return nil, err
	}
	if kvm != nil {
		defer kvm.Close()
	}
	inst := newDriverInstance(digest)
	defer func() {
		if err != nil {
			inst.closePages()
		}
	}()
	l := hv.NewLaunch(vmm, hv.Driver, cfg.Name)
	l.Spec.Engine = chosen
	l.Spec.KVM = l.Add(kvm)
	l.Spec.Program = l.Add(program)
	l.Spec.Env = driverEnv(cfg.Type)
	l.Spec.MemoryBytes = cfg.MemoryBytes
	if err = inst.addPages(l); err != nil {
		return nil, err
	}
	if err = add(inst, l); err != nil {
		return nil, err
	}
	if inst.instance, err = d.launch(l, r, generation, false); err != nil {
		return nil, err
	}
	return inst, nil
}

func newDriverInstance(digest string) *driverInstance {
	return &driverInstance{hung: make(chan struct{}), taken: make(chan struct{}), program: digest}
}

// driverEnv returns the environment of the program of a type of driver.
func driverEnv(kind string) []string {
	switch kind {
	case typeNet:
		return net.Env
	case typeConsole:
		return console.Env
	}
	return blk.Env
}

// addPages makes what every driver VM has: its control channel, and the pages by which it is watched.
func (i *driverInstance) addPages(l *hv.Launch) (err error) {
	if i.status, err = hv.NewMemory("grail-status", abi.StatusSize); err != nil {
		return err
	}
	if i.hostStatus, err = hv.NewMemory("grail-host-status", hostStatusBytes); err != nil {
		return err
	}
	l.Spec.HostStatus = l.Add(i.hostStatus)
	l.Spec.Caps = []hv.CapSpec{
		{Kind: abi.CapControl, Name: "control", Rights: abi.RightRead | abi.RightWrite, FD: -1},
		{Kind: abi.CapStatus, Name: "status", Rights: abi.RightRead | abi.RightWrite, FD: l.Add(i.status), Size: abi.StatusSize},
	}
	l.Spec.Attachments = []hv.Attachment{{Disk: keepStatus, Log: -1, Regions: []hv.AttachMem{
		{FD: l.Add(i.status), Size: abi.StatusSize}, {FD: l.Add(i.hostStatus), Size: hostStatusBytes},
	}}}
	return nil
}

// hostStatusBytes is the size of a hv.Spec.HostStatus page.
const hostStatusBytes = 4096

func (i *driverInstance) closePages() {
	for _, f := range []*os.File{i.status, i.hostStatus, i.state} {
		if f != nil {
			f.Close()
		}
	}
}

// read64 reads a counter from a page; 0 when it cannot be read.
func read64(f *os.File, offset int64) uint64 {
	var b [8]byte
	if f == nil {
		return 0
	}
	if n, err := unix.Pread(rawFD(f), b[:], offset); err != nil || n != len(b) {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (i *driverInstance) beat() uint64     { return read64(i.status, abi.StatusBeat) }
func (i *driverInstance) requests() uint64 { return read64(i.status, abi.StatusRequests) }
func (i *driverInstance) hostBusy() bool   { return read64(i.hostStatus, 0) != 0 }

// declareHung makes the driver's loop replace the instance. since is its last sign of life.
func (i *driverInstance) declareHung(since time.Time) {
	if i.hungOnce.CompareAndSwap(false, true) {
		i.hungSince.Store(since.UnixNano())
		close(i.hung)
	}
}

// declareStalled is declareHung for an instance that beats: what says what stood still.
func (i *driverInstance) declareStalled(what string, since time.Time) {
	i.stalled.CompareAndSwap(nil, &what)
	i.declareHung(since)
}

// waitReady returns when the driver's program takes attachments.
func (i *driverInstance) waitReady(timeout time.Duration) (*hv.Status, error) {
	deadline := time.Now().Add(timeout)
	pause := 500 * time.Microsecond
	for {
		st, err := i.instance.status(time.Until(deadline))
		switch {
		case err != nil && (i.gone() || errors.Is(err, hv.ErrClosed)):
			i.awaitEnd() // its end says more than the broken connection
			return nil, errEnded
		case errors.Is(err, errTimeout):
			return nil, fmt.Errorf("the driver's program was not ready within %v", timeout)
		case err != nil:
			return nil, err
		case st.State == hv.StateReady:
			return st, nil
		case time.Now().After(deadline):
			return nil, fmt.Errorf("the driver's program was not ready within %v", timeout)
		}
		select {
		case <-i.ended:
			return nil, errEnded
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Millisecond)
	}
}

// errEnded reports that the instance ended while it was waited for.
var errEnded = errors.New("the driver ended while it started")

// attach makes the instance serve c, unless it does already. period is the driver's heartbeat.
func (i *driverInstance) attach(c *client, period time.Duration) error {
	c.attaching.Lock()
	defer c.attaching.Unlock()
	c.mu.Lock()
	served, gone := c.on == i, c.gone
	c.mu.Unlock()
	if served {
		return nil
	}
	if i.gone() {
		return hv.ErrClosed // and another one may serve it by now
	}
	if gone {
		return errLeft
	}
	if len(i.takeStrays(func(id uint64) bool { return id == c.att.ID })) > 0 {
		c.mu.Lock()
		c.on, c.err, c.dead, c.told = i, "", false, ""
		c.mu.Unlock()
		return nil
	}
	if err := c.mend(); err != nil {
		return err
	}
	c.noteWild()
	defer i.expectBeat(period)()
	att, fds := c.offer()
	gets, err := c.addShare(&att)
	if err != nil {
		return err
	}
	_, got, err := i.call(hv.Request{Op: hv.OpAttach, ID: att.ID, Attachment: &att}, attachTimeout, fds...)
	closeFDs(got)
	if err != nil && i.adopted && !i.gone() {
		// It may have given the client up before: what is left of it would be in its successor's way.
		_ = i.detach(att.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on, c.err, c.dead, c.told = nil, "", false, gets
	if err != nil {
		c.err = err.Error()
		return err
	}
	c.on = i
	return nil
}

// takeStrays removes and returns the strays for which ok holds.
func (i *driverInstance) takeStrays(ok func(id uint64) bool) (taken []uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for id := range i.strays {
		if ok(id) {
			taken = append(taken, id)
			delete(i.strays, id)
		}
	}
	return taken
}

// errLeft reports a client that is being detached.
var errLeft = errors.New("the client is leaving")

// detach ends the service for c; by force when the driver does not let go of it in time.
func (i *driverInstance) detach(id uint64) error {
	_, got, err := i.call(hv.Request{Op: hv.OpDetach, ID: id}, detachTimeout)
	closeFDs(got)
	if err != nil && !i.gone() {
		_, got, err = i.call(hv.Request{Op: hv.OpRevoke, ID: id}, detachTimeout)
		closeFDs(got)
	}
	return err
}
