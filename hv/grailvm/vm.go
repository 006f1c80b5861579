package main

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/sys"
	"github.com/grailos/grail/hv/vfs"
)

// vm is the one VM that this process runs.
type vm struct {
	spec        *hv.Spec
	started     time.Time
	table       *vfs.Table
	engine      engine
	busy        []byte // the HostStatus page, or nil
	status      []byte // the driver's status page, or nil
	jailMissing []string

	mu      sync.Mutex
	ready   bool
	clients map[uint64]*client // of a driver, by attachment
	dead    []string           // MsgDead texts
	asked   *question          // what the driver owes an answer to, or nil

	asking chan struct{} // holds one element while asked is set
}

// client is an attachment that the driver serves, or is about to.
type client struct {
	caps []vfs.Installed
	done chan string // the driver's answer to the message in progress
	dead bool

	attached chan struct{} // closed when the attach is done
	err      error         // its answer, set before
}

// served reports whether the attach is done. One that failed is no client any more.
func (c *client) served() bool {
	select {
	case <-c.attached:
		return true
	default:
		return false
	}
}

// maxDead bounds the texts kept about dead clients.
const maxDead = 32

func (v *vm) setReady() {
	v.mu.Lock()
	v.ready = true
	v.mu.Unlock()
}

// mapStatus maps the pages through which liveness is watched.
func (v *vm) mapStatus() error {
	v.clients, v.asking = make(map[uint64]*client), make(chan struct{}, 1)
	mapPage := func(fd int) ([]byte, error) {
		if fd < 0 {
			return nil, nil
		}
		b, err := unix.Mmap(fd, 0, abi.StatusSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map status page: %w", err)
		}
		return b, nil
	}
	var err error
	if v.busy, err = mapPage(v.spec.HostStatus); err != nil {
		return err
	}
	for _, c := range v.spec.Caps {
		if c.Kind == abi.CapStatus {
			v.status, err = mapPage(c.FD)
		}
	}
	return err
}

// install gives the guest capabilities. On engine process, memory is also made mappable natively.
func (v *vm) install(specs []hv.CapSpec) ([]vfs.Installed, error) {
	caps, err := v.table.InstallCaps(specs...)
	if err != nil {
		return nil, err
	}
	p, ok := v.engine.(*sys.ProcessGuest)
	if !ok {
		return caps, nil
	}
	for i, c := range specs {
		switch c.Kind {
		case abi.CapStatus, abi.CapDisk, abi.CapNet, abi.CapRings, abi.CapUsed, abi.CapGrant, abi.CapLog, abi.CapState:
			// The host's kernel maps it for the guest by what the descriptor allows.
			mode, err := unix.FcntlInt(uintptr(c.FD), unix.F_GETFL, 0)
			if err == nil && c.Rights&abi.RightWrite == 0 && mode&unix.O_ACCMODE != unix.O_RDONLY && c.Kind != abi.CapDisk {
				err = fmt.Errorf("capability %q is to be read only, and its descriptor is not", c.Name)
			}
			if err != nil {
				v.table.Remove(caps...)
				return nil, err
			}
			fd, err := unix.FcntlInt(uintptr(c.FD), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			p.Share(caps[i].FD, fd)
		}
	}
	return caps, nil
}

// onMessage takes what the driver says. It runs on a guest thread and does not block.
func (v *vm) onMessage(m abi.Message) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch m.Type {
	case abi.MsgReady:
		v.ready = true
	case abi.MsgDone:
		if c := v.clients[m.ID]; c != nil {
			select {
			case c.done <- m.Text:
			default: // an answer that nobody asked for
			}
		}
	case abi.MsgDead:
		if c := v.clients[m.ID]; c != nil {
			c.dead = true
		}
		if len(v.dead) < maxDead {
			v.dead = append(v.dead, m.Text)
		}
	default:
		v.answered(m)
	}
}

// statusNow answers OpStatus.
func (v *vm) statusNow() *hv.Status {
	st := &hv.Status{Name: v.spec.Name, State: hv.StateStarting, Engine: v.spec.Engine,
		Stats: v.engine.Stats(), Denied: v.engine.Denied(), Console: v.table.Console(), JailMissing: v.jailMissing, Leader: v.engine.Leader()}
	if p, ok := v.engine.(*sys.ProcessGuest); ok {
		st.Starved = p.Starved()
	}
	if v.status != nil {
		st.Beat = binary.LittleEndian.Uint64(v.status[abi.StatusBeat:])
	}
	if v.busy != nil {
		st.HostBusy = binary.LittleEndian.Uint64(v.busy) != 0
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ready {
		st.State = hv.StateReady
	}
	for id, c := range v.clients {
		if !c.dead && c.served() {
			st.Attached = append(st.Attached, id)
		}
	}
	st.Dead = append(st.Dead, v.dead...)
	return st
}
