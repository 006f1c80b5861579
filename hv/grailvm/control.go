package main

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/inject"
)

// serveConn answers the requests of one connection.
func (v *vm) serveConn(c *hv.Conn) {
	for {
		var req hv.Request
		fds, err := c.Receive(&req)
		if err != nil {
			closeAll(fds)
			return
		}
		resp, send, err := v.control(&req, fds)
		closeAll(fds)
		if err != nil {
			resp.Error = err.Error()
		}
		if err := c.Send(resp, send...); err != nil {
			return
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

var errNoDriver = errors.New("the VM is no driver")

// control performs one request. fds stay the caller's.
func (v *vm) control(req *hv.Request, fds []int) (resp hv.Response, send []int, err error) {
	switch req.Op {
	case hv.OpStatus:
		resp.Status = v.statusNow()
	case hv.OpAttach:
		err = v.attach(req.Attachment, fds)
	case hv.OpDetach:
		err = v.detach(req.ID)
	case hv.OpRevoke:
		err = v.revoke(req.ID)
	case hv.OpAttachments:
		resp.Attachments, send = v.attachments()
	case hv.OpMessage:
		if req.Message == nil {
			return resp, nil, errors.New("no message")
		}
		err = v.table.Control().Push(*req.Message)
	case hv.OpAsk:
		if req.Message == nil {
			return resp, nil, errors.New("no message")
		}
		resp.Message, err = v.question(*req.Message)
	case hv.OpInject:
		resp.Hit, err = v.inject(req.Order)
	case hv.OpSignal:
		err = v.engine.Signal(req.Signal)
	case hv.OpLimit:
		err = v.engine.Limit(req.Milli)
	case hv.OpReclaim:
		resp.Reclaimed, err = v.engine.Reclaim(req.Reclaim)
	case hv.OpReserve:
		err = v.engine.Reserve(req.Reserve)
	case hv.OpKill:
		v.engine.Kill()
	default:
		err = fmt.Errorf("unknown request %q", req.Op)
	}
	return resp, send, err
}

// inject makes a fault, or arms it.
func (v *vm) inject(o *inject.Order) (*inject.Hit, error) {
	if o == nil {
		return nil, errors.New("no order")
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	if o.Armed() {
		hit := v.table.Faults.Arm(o)
		return &hit, nil
	}
	hit, err := v.engine.Inject(o)
	return &hit, err
}

// attach gives the driver a client's memory and doorbells, and waits until it serves them. An attachment that there is already is that of a caller that
// died while it waited, or lost count: the answer is the first one's.
func (v *vm) attach(a *hv.Attachment, fds []int) (err error) {
	if a == nil || v.spec.Kind != hv.Driver {
		return errNoDriver
	}
	if len(a.Config) > hv.MaxConfig {
		return fmt.Errorf("configuration of %d bytes, the limit is %d", len(a.Config), hv.MaxConfig)
	}
	specs, msg, err := translate(a, fds)
	if err != nil {
		return err
	}
	c := &client{done: make(chan string, 1), attached: make(chan struct{})}
	v.mu.Lock()
	first := v.clients[a.ID]
	if first == nil {
		v.clients[a.ID] = c
	}
	v.mu.Unlock()
	if first != nil {
		return v.await(a.ID, first)
	}
	defer func() {
		c.err = err
		close(c.attached)
	}()
	if c.caps, err = v.install(specs); err != nil {
		v.forget(a.ID)
		return err
	}
	// The message names descriptors by their place in specs until now.
	number := func(n int32) int32 {
		if n < 0 {
			return -1
		}
		return c.caps[n].FD
	}
	for i := range msg.Regions {
		msg.Regions[i].FD = number(msg.Regions[i].FD)
	}
	for i := range msg.Queues {
		msg.Queues[i].KickFD, msg.Queues[i].CallFD = number(msg.Queues[i].KickFD), number(msg.Queues[i].CallFD)
	}
	msg.LogFD = number(msg.LogFD)
	err = v.ask(c, abi.Message{Type: abi.MsgAttach, ID: a.ID, Text: a.Config, Attach: msg})
	if err != nil {
		v.drop(a.ID, c)
	}
	return err
}

// await returns when an attach that is under way is done, or was long ago, and what came of it.
func (v *vm) await(id uint64, c *client) error {
	<-c.attached
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.err == nil && c.dead {
		return fmt.Errorf("attachment %d broke the rules of its ring", id)
	}
	return c.err
}

// translate turns an attachment into capabilities for the driver, and the message that tells it of them.
func translate(a *hv.Attachment, fds []int) ([]hv.CapSpec, *abi.Attach, error) {
	var specs []hv.CapSpec
	var bad error
	add := func(kind abi.CapKind, index uint16, rights uint32, fd int, size uint64) int32 {
		if fd < 0 {
			return -1
		}
		if fd >= len(fds) {
			bad = fmt.Errorf("descriptor %d of %d", fd, len(fds))
			return -1
		}
		specs = append(specs, hv.CapSpec{Kind: kind, Name: a.Disk, Index: uint32(index),
			Rights: rights, FD: fds[fd], Size: size})
		return int32(len(specs) - 1)
	}
	const both = abi.RightRead | abi.RightWrite
	msg := &abi.Attach{Client: a.Client, Disk: a.Disk, ReadOnly: a.ReadOnly, Features: a.Features, LogSize: a.LogSize}
	for _, r := range a.Regions {
		if r.Size > 1<<46 || r.Offset > 1<<46 {
			return nil, nil, fmt.Errorf("region of %d bytes at %d", r.Size, r.Offset)
		}
		rights := both
		if r.ReadOnly {
			rights = abi.RightRead
		}
		msg.Regions = append(msg.Regions, abi.Region{FD: add(abi.CapGrant, 0, rights, r.FD, r.Offset+r.Size),
			Base: r.Base, Size: r.Size, Offset: r.Offset, ReadOnly: r.ReadOnly})
	}
	for _, q := range a.Queues {
		msg.Queues = append(msg.Queues, abi.Queue{Index: q.Index, Size: q.Size, LastAvail: q.LastAvail,
			KickFD: add(abi.CapKick, q.Index, both, q.Kick, 0), CallFD: add(abi.CapCall, q.Index, both, q.Call, 0),
			Desc: q.Desc, Avail: q.Avail, Used: q.Used})
	}
	msg.LogFD = add(abi.CapLog, 0, both, a.Log, a.LogSize)
	return specs, msg, bad
}

// ask sends the driver a message and waits for its answer; that the driver dies meanwhile ends this process.
func (v *vm) ask(c *client, m abi.Message) error {
	select {
	case <-c.done: // an answer to nothing
	default:
	}
	if err := v.table.Control().Push(m); err != nil {
		return err
	}
	if text := <-c.done; text != "" {
		return errors.New(text)
	}
	return nil
}

func (v *vm) forget(id uint64) {
	v.mu.Lock()
	delete(v.clients, id)
	v.mu.Unlock()
}

// drop takes a client's capabilities from the driver; its memory is replaced by zero pages, whatever the driver
// still does with it.
func (v *vm) drop(id uint64, c *client) {
	v.forget(id)
	for _, cap := range c.caps {
		if err := v.engine.Revoke(cap.Object); err != nil {
			v.engine.Kill() // memory that cannot be taken away: the driver goes instead
		}
	}
	v.table.Remove(c.caps...)
}

func (v *vm) client(id uint64) (*client, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.clients[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("no attachment %d", id)
}

func (v *vm) detach(id uint64) error {
	c, err := v.client(id)
	if err != nil {
		return err
	}
	err = v.ask(c, abi.Message{Type: abi.MsgDetach, ID: id})
	v.drop(id, c)
	return err
}

func (v *vm) revoke(id uint64) error {
	c, err := v.client(id)
	if err != nil {
		return err
	}
	v.drop(id, c)
	return nil
}

// attachments answers with the Attachments of the Spec; descriptors become indices of what is sent along.
func (v *vm) attachments() ([]hv.Attachment, []int) {
	var send []int
	var out []hv.Attachment
	for _, a := range v.spec.Attachments {
		a.Regions = slices.Clone(a.Regions)
		a.Queues = slices.Clone(a.Queues)
		a.Descriptors(func(fd *int) {
			send = append(send, *fd)
			*fd = len(send) - 1
		})
		out = append(out, a)
	}
	return out, send
}
