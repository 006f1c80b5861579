package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/place"
)

// rolePortal marks the process that owns a driver's vhost-user sockets.
const rolePortal role = "portal"

// portalQueues is how many queues a vhost-user client may use.
const portalQueues = 4

// Pauses of a portal that fails: a client can make it fail again and again.
const (
	portalPause    = 100 * time.Millisecond
	maxPortalPause = 10 * time.Second
)

// portal is graild's side of a driver's portal: it attaches to the driver what the portal's clients want.
type portal struct {
	dr         *driver
	generation int
	proc       *hv.Process
	socket     string
	known      map[uint64]*client // attached, or being attached; the loop's
}

func (d *Daemon) portalSocket(driver, disk string) string {
	return filepath.Join(d.dirs.Run, "vhost", driver+"-"+disk+".sock")
}

func (d *Daemon) portalControl(driver string, generation int) string {
	return filepath.Join(d.dirs.Sockets(), driver+".portal."+strconv.Itoa(generation))
}

// runPortal keeps a portal running as long as its driver is wanted.
func (dr *driver) runPortal(adopted *running) {
	d := dr.d
	pause := portalPause
	for {
		p, err := dr.openPortal(adopted)
		adopted = nil
		began := time.Now()
		dr.mu.Lock()
		dr.portal, dr.portalErr = p, err
		dr.set(dr.state, dr.message)
		dr.mu.Unlock()
		if err == nil {
			err = p.serve()
			p.abandon()
		}
		select {
		case <-dr.stop:
			return
		case <-d.closing:
			return
		default:
		}
		if time.Since(began) > maxPortalPause {
			pause = portalPause
		}
		d.log.Error("portal", "driver", dr.name(), "error", err, "next", pause)
		select {
		case <-time.After(pause):
		case <-dr.stop:
			return
		case <-d.closing:
			return
		}
		pause = min(2*pause, maxPortalPause)
	}
}

// openPortal returns the adopted portal, or starts one.
func (dr *driver) openPortal(adopted *running) (*portal, error) {
	d := dr.d
	p := &portal{dr: dr, known: map[uint64]*client{}}
	if adopted != nil {
		if proc, err := d.open(*adopted); err == nil {
			p.proc, p.generation, p.socket = proc, adopted.generation, d.portalControl(dr.name(), adopted.generation)
			return p, nil
		}
	}
	path, err := place.Program("grailport")
	if err != nil {
		return nil, err
	}
	// The number of the portal is also the upper half of its attachments' numbers.
	id, err := d.store.NextID()
	if err != nil {
		return nil, err
	}
	p.generation, p.socket = int(id), d.portalControl(dr.name(), int(id))
	l := hv.PortalLaunch{Exec: hv.Exec{Path: path, Tag: d.tag(rolePortal, dr.name(), p.generation)},
		Spec: hv.PortalSpec{Driver: dr.name(), FirstID: id * hv.PortalIDs, AllowUnsealed: dr.rec.Config.Unsealed}}
	stderr, control, err := d.helperFiles(dr.name(), filepath.Join(d.dirs.VM(dr.name()), "portal.log"), p.socket)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	defer control.Close()
	l.Stderr = stderr
	l.Spec.Control = l.Add(control)
	dr.mu.Lock()
	backings := dr.backings
	dr.mu.Unlock()
	if len(backings) < len(dr.rec.Config.Disks) {
		return nil, errors.New("the driver's disks are not open")
	}
	for i := range dr.rec.Config.Ports {
		dev, err := portDevice(&dr.rec.Config, &dr.rec.Config.Ports[i])
		if err != nil {
			return nil, err
		}
		listener, err := p.listen(dev.Name)
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		dev.Listen = l.Add(listener)
		l.Spec.Devices = append(l.Spec.Devices, dev)
	}
	for _, b := range backings {
		listener, err := p.listen(b.id)
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		dev := b.device()
		dev.Queues = portalQueues
		config := dev.Config()
		l.Spec.Devices = append(l.Spec.Devices, hv.PortalDevice{Kind: hv.PortalBlk, Name: b.id, Listen: l.Add(listener), ReadOnly: b.readOnly,
			Features: dev.Features(), Space: config[:], Queues: dev.Queues})
	}
	if p.proc, err = l.Start(); err != nil {
		_ = os.Remove(p.socket)
		return nil, err
	}
	p.dr.join(p.proc.PID)
	return p, nil
}

// listen makes the vhost-user socket of a disk or a port.
func (p *portal) listen(device string) (*os.File, error) {
	socket := p.dr.d.portalSocket(p.dr.name(), device)
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return nil, err
	}
	listener, err := listenFile(socket)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	return listener, nil
}

// listenFile returns a listening stream socket at path, in place of what is there.
func listenFile(path string) (*os.File, error) {
	l, err := listenUnix("unix", path)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.File()
}

// dial opens a connection to the portal.
func (p *portal) dial(timeout time.Duration) (portal hv.Portal, err error) {
	err = place.WithSocket(p.socket, func(short string) (err error) {
		portal.Conn, err = hv.Dial(short)
		return err
	})
	if err == nil {
		err = portal.SetTimeout(timeout)
	}
	return portal, err
}

// ask makes one request on a connection of its own.
func (p *portal) ask(f func(hv.Portal) error) error {
	c, err := p.dial(callTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// serve does what the portal wants until it ends, or the driver, or graild.
func (p *portal) serve() error {
	c, err := p.dial(0)
	if err != nil {
		return err
	}
	// A wait that is in progress ends when its connection does. Nobody may use the connection after its Close.
	quit, idle := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(idle)
		select {
		case <-quit:
		case <-p.dr.stop:
			_ = c.Shutdown()
		case <-p.dr.d.closing:
			_ = c.Shutdown()
		}
	}()
	defer func() {
		close(quit)
		<-idle
		c.Close()
	}()
	select {
	case <-p.dr.known:
	case <-p.dr.stop:
		return nil
	case <-p.dr.d.closing:
		return nil
	}
	var seq uint64
	for {
		s, err := c.Wait(seq)
		if err != nil {
			return err
		}
		seq = s.Seq
		p.reconcile(s)
	}
}

// reconcile brings about what the portal wants.
func (p *portal) reconcile(s hv.PortalState) {
	listed := map[uint64]bool{}
	for _, a := range s.Attachments {
		listed[a.ID] = true
		switch c := p.known[a.ID]; {
		case a.Leaving:
			if c != nil {
				p.drop(a.ID, c)
			}
			p.dr.dropStrays(func(id uint64) bool { return id == a.ID })
			p.detached(a.ID)
		case c == nil:
			p.take(a.ID)
		}
	}
	for id, c := range p.known {
		if !listed[id] {
			p.drop(id, c)
		}
	}
	// What a former portal had attached and this one does not know is nobody's.
	p.dr.dropStrays(func(id uint64) bool { return !listed[id] })
}

// detached tells the portal that nothing of an attachment is in flight.
func (p *portal) detached(id uint64) {
	if err := p.ask(func(c hv.Portal) error { return c.Detached(id) }); err != nil {
		p.dr.d.log.Warn("portal", "driver", p.dr.name(), "error", err)
	}
}

// take fetches an attachment and has it attached, which may take until the driver is ready.
func (p *portal) take(id uint64) {
	var att hv.Attachment
	var fds []int
	err := p.ask(func(c hv.Portal) (err error) {
		att, fds, err = c.Fetch(id)
		return err
	})
	if err != nil {
		if !errors.Is(err, hv.ErrPortal) {
			p.dr.d.log.Warn("portal", "driver", p.dr.name(), "error", err)
		}
		return
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = hv.KeptFile(fd, "vhost-user")
	}
	att.ID, att.Driver = id, p.dr.name()
	var c *client
	if err = p.dr.checkPortFeatures(att); err == nil {
		c, err = newClient(att, files)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		p.refuse(id, err)
		return
	}
	c.refuse = func(why error) { p.refuse(id, why) }
	p.known[id] = c
	go func() {
		// An adopted driver may serve it already.
		err := p.dr.attach(context.Background(), c)
		if err != nil && !errors.Is(err, errLeft) {
			p.refuse(id, err)
			return
		}
		_ = p.ask(func(h hv.Portal) error { return h.Attached(id, nil) })
	}()
}

// refuse makes the portal disconnect a client.
func (p *portal) refuse(id uint64, why error) {
	err := p.ask(func(c hv.Portal) error { return c.Attached(id, why) })
	if err != nil && !errors.Is(err, hv.ErrPortal) {
		p.dr.d.log.Warn("portal", "driver", p.dr.name(), "error", err)
	}
}

// drop detaches a client of the portal.
func (p *portal) drop(id uint64, c *client) {
	p.dr.detach(c)
	delete(p.known, id)
	c.close()
}

// abandon detaches all clients of a portal that has ended. When graild ends, they stay as they are.
func (p *portal) abandon() {
	select {
	case <-p.dr.d.closing:
		p.proc.Close()
		return
	default:
	}
	_ = p.proc.Kill()
	_ = p.proc.Wait(callTimeout)
	p.proc.Close()
	_ = os.Remove(p.socket)
	for id, c := range p.known {
		p.drop(id, c)
	}
}

// dropStrays detaches those attachments of an adopted instance for which ok holds and which nobody has claimed.
func (dr *driver) dropStrays(ok func(id uint64) bool) {
	dr.mu.Lock()
	inst := dr.inst
	dr.mu.Unlock()
	if inst == nil {
		return
	}
	for _, id := range inst.takeStrays(ok) {
		if err := inst.detach(id); err != nil && !inst.gone() {
			dr.d.log.Warn("detach of a client that is gone", "driver", dr.name(), "attachment", id, "error", err)
		}
	}
}
