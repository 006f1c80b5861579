package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
)

// acceptPause is how long a listener that cannot accept, for want of descriptors, waits.
const acceptPause = 100 * time.Millisecond

// listener returns the listening socket behind a descriptor, which it takes over.
func listener(fd int) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	if f == nil {
		return nil, fmt.Errorf("no descriptor %d", fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("descriptor %d is no Unix socket", fd)
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// acceptClients serves the clients of one device for ever.
func (p *portal) acceptClients(d *device, l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-time.After(acceptPause)
			continue
		}
		if !d.admit() {
			c.Close()
			continue
		}
		name, ok := p.enter(d.Name)
		if !ok {
			c.Close()
			d.dismiss()
			continue
		}
		go func() {
			err := p.serve(d, name, c)
			d.dismiss()
			p.leave(name, err)
		}()
	}
}

// serve runs one client's session, and returns why it ended.
func (p *portal) serve(d *device, name string, c *net.UnixConn) error {
	if err := d.claim(); err != nil {
		c.Close()
		return err
	}
	defer d.release()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	err := vhostuser.NewBackend(c, newSession(p, d, name, cancel)).Serve(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return err
}

// newSession returns the handler of one client's session.
func newSession(p *portal, d *device, name string, disconnect func(error)) *session {
	return &session{p: p, dev: d, name: name, disconnect: disconnect, queues: map[int]*running{}, log: noLog}
}

// session is one client: the Handler of its vhost-user connection.
type session struct {
	p          *portal
	dev        *device
	name       string
	disconnect func(error)

	mem     []vhostuser.MemRegion // with descriptors of our own
	log     inflight              // the client's
	logSize uint16                // queue size of log
	queues  map[int]*running
	private map[int]*inflight // by queue: logs of our own, for clients without one
}

// running is a queue that the client has started.
type running struct {
	state vhostuser.QueueState // with descriptors of our own
	log   *inflight            // noLog: the used ring alone says where to go on
	a     *attachment
}

var (
	_ vhostuser.Handler       = (*session)(nil)
	_ vhostuser.SingleHandler = (*session)(nil)
)

// Features implements vhostuser.Handler.
func (s *session) Features() uint64 { return s.dev.features() }

// ProtocolFeatures implements vhostuser.Handler.
func (s *session) ProtocolFeatures() uint64 { return s.dev.protocol() }

// Queues implements vhostuser.Handler.
func (s *session) Queues() uint16 { return uint16(s.dev.Queues) }

// Single implements vhostuser.SingleHandler.
func (s *session) Single() (queues uint16, without uint64) { return s.dev.single() }

// Config implements vhostuser.Handler.
func (s *session) Config(offset, size uint32) ([]byte, error) {
	var space [vhostuser.MaxConfig]byte
	copy(space[:], s.dev.Space)
	return space[offset : offset+size], nil
}

// SetConfig implements vhostuser.Handler.
func (s *session) SetConfig(uint32, []byte) error {
	return errors.New("the device's configuration cannot be written")
}

// SetMemory implements vhostuser.Handler. Memory that the client could take away under the driver VM is
// refused.
func (s *session) SetMemory(regions []vhostuser.MemRegion) error {
	s.dropMemory()
	for _, r := range regions {
		if !r.Sealed && !s.p.spec.AllowUnsealed {
			if _, err := unix.FcntlInt(uintptr(r.FD), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
				return fmt.Errorf("memory region at %#x could be truncated by the client (%w): use a sealed memfd, as QEMU's memory-backend-memfd is", r.GPA, err)
			}
		}
		fd, err := unix.FcntlInt(uintptr(r.FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("duplicate descriptor: %w", err)
		}
		r.FD = fd
		s.mem = append(s.mem, r)
	}
	return nil
}

func (s *session) dropMemory() {
	for _, r := range s.mem {
		unix.Close(r.FD)
	}
	s.mem = nil
}

// SetInflight implements vhostuser.Handler. The log is one that we made, or an earlier portal did.
func (s *session) SetInflight(l vhostuser.InflightArea) error {
	if !l.Sealed || l.Offset != 0 {
		return errors.New("the in-flight log is not one that was handed out here")
	}
	s.log.close()
	fd, err := unix.FcntlInt(uintptr(l.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	s.log, s.logSize = inflight{fd: fd, size: l.Size}, l.QueueSize
	return nil
}

// Start implements vhostuser.Handler. It does not wait for the driver VM.
func (s *session) Start(q vhostuser.QueueState) error {
	log, err := s.logOf(q.Index, q.Ring.Size)
	if err != nil {
		return err
	}
	r := &running{state: q, log: log}
	r.state.Kick, r.state.Call, r.state.Err = -1, -1, -1
	for _, fd := range []struct{ from, to *int }{{&q.Kick, &r.state.Kick}, {&q.Call, &r.state.Call}} {
		if *fd.from < 0 {
			continue
		}
		if *fd.to, err = unix.FcntlInt(uintptr(*fd.from), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			r.close()
			return fmt.Errorf("duplicate descriptor: %w", err)
		}
	}
	if err := s.attach(r); err != nil {
		r.close()
		return err
	}
	s.queues[q.Index] = r
	return nil
}

func (r *running) close() {
	for _, fd := range []int{r.state.Kick, r.state.Call} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// attach offers the queue to graild.
func (s *session) attach(r *running) error {
	base := hv.Attachment{Client: s.name, Driver: s.p.spec.Driver, Disk: s.dev.Name, ReadOnly: s.dev.ReadOnly, Config: s.dev.Config}
	a, err := newAttachment(base, s.mem, *r.log, r.state, s.disconnect)
	if err != nil {
		return err
	}
	if err := s.p.add(a); err != nil {
		a.close()
		return err
	}
	r.a = a
	return nil
}

// logOf returns the log for a queue: the client's when it fits, otherwise one of our own, so that a driver VM
// can always be replaced. A network card's queues have none.
func (s *session) logOf(index int, size uint16) (*inflight, error) {
	if s.dev.Kind == hv.PortalNet {
		return &noLog, nil
	}
	if s.log.fd >= 0 && s.logSize == size && uint64(index+1)*ring.InflightBytes(size) <= s.log.size {
		return &s.log, nil
	}
	if l := s.private[index]; l != nil && l.size == uint64(index+1)*ring.InflightBytes(size) {
		return l, nil
	}
	l, err := newInflight(index, size)
	if err != nil {
		return nil, err
	}
	if s.private == nil {
		s.private = map[int]*inflight{}
	}
	if old := s.private[index]; old != nil {
		old.close()
	}
	s.private[index] = &l
	return &l, nil
}

// detach takes the queue back from the driver VM and brings its LastAvail up to date.
func (s *session) detach(r *running) error {
	s.p.remove(r.a)
	r.a = nil
	used, err := usedIndex(s.mem, &r.state.Ring)
	if err != nil {
		return err
	}
	if r.log.fd < 0 {
		r.state.LastAvail = used // any number that the client wrote there is its own affair
		return nil
	}
	r.state.LastAvail, err = r.log.nextAvail(r.state.Index, r.state.Ring.Size, used, r.state.LastAvail)
	return err
}

// SetCall implements vhostuser.Handler: the queue is attached anew, and the driver VM rings the new doorbell
// once when it is.
func (s *session) SetCall(index, call int) error {
	r := s.queues[index]
	if r == nil {
		return fmt.Errorf("queue %d does not run", index)
	}
	if err := s.detach(r); err != nil {
		return err
	}
	fd := -1
	if call >= 0 {
		var err error
		if fd, err = unix.FcntlInt(uintptr(call), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return fmt.Errorf("duplicate descriptor: %w", err)
		}
	}
	if r.state.Call >= 0 {
		unix.Close(r.state.Call)
	}
	r.state.Call = fd
	return s.attach(r)
}

// Stop implements vhostuser.Handler. It waits until the driver VM does not serve the queue.
func (s *session) Stop(index int) (uint16, error) {
	r := s.queues[index]
	if r == nil {
		return 0, fmt.Errorf("queue %d does not run", index)
	}
	delete(s.queues, index)
	defer r.close()
	if r.a == nil { // a SetCall failed half-way
		return r.state.LastAvail, nil
	}
	err := s.detach(r)
	return r.state.LastAvail, err
}

// Disconnected implements vhostuser.Handler.
func (s *session) Disconnected(error) {
	s.dropMemory()
	s.log.close()
	for _, l := range s.private {
		l.close()
	}
}
