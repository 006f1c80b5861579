package vhostuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// session is the back end's state machine. It does no socket I/O: handle takes a message and returns the
// answer to it. It owns every descriptor that it has been given.
type session struct {
	h        Handler
	offered  uint64 // virtio features, FeatureProtocol included
	features uint64 // acknowledged
	acked    bool
	proto    uint64 // acknowledged protocol features
	protoSet bool   // SET_PROTOCOL_FEATURES came
	single   int    // queues of a front end without ProtocolMultiQueue
	without  uint64 // virtio features that such a front end does not get
	mem      memTable
	log      *InflightArea
	made     int // descriptor of the log that GET_INFLIGHT_FD made, or -1
	status   uint64
	vrings   []vring
}

// vring is what the front end has said about one queue so far.
type vring struct {
	num, base        uint16
	addr             vringAddr
	hasAddr          bool
	started          bool // SET_VRING_KICK came, and no GET_VRING_BASE since
	asked, enabled   bool // SET_VRING_ENABLE came, and what it said
	running          bool // Handler.Start was called, and Stop was not
	kick, call, errs int
}

func newSession(h Handler) *session {
	s := &session{h: h, offered: h.Features() | FeatureProtocol, made: -1}
	s.vrings = make([]vring, min(int(h.Queues()), MaxQueues))
	for i := range s.vrings {
		s.vrings[i] = vring{kick: -1, call: -1, errs: -1}
	}
	s.single = len(s.vrings)
	if one, ok := h.(SingleHandler); ok {
		n, without := one.Single()
		s.single, s.without = min(int(n), len(s.vrings)), without&^FeatureProtocol
	}
	return s
}

// queues returns how many queues the front end can know of.
func (s *session) queues() int {
	if s.proto&ProtocolMultiQueue == 0 {
		return s.single
	}
	return len(s.vrings)
}

// withheld returns the features that are of no use to this front end.
func (s *session) withheld() uint64 {
	if s.proto&ProtocolMultiQueue == 0 {
		return s.without
	}
	return 0
}

// offers returns the features that the front end may acknowledge.
func (s *session) offers() uint64 {
	if s.protoSet {
		return s.offered &^ s.withheld()
	}
	return s.offered
}

// rejection is a handler's or a request's error that the session survives when the front end hears of it.
type rejection struct{ error }

func (r rejection) Unwrap() error { return r.error }

func rejected(err error) error {
	if err == nil {
		return nil
	}
	return rejection{err}
}

// handle processes m, whose descriptors it takes over, and returns the answer to send, if any. After an error
// the session is over.
func (s *session) handle(m *message) (*message, error) {
	reply, err := s.dispatch(m)
	closeFDs(m.fds) // those that nobody took over
	m.fds = nil
	var r rejection
	explicit := reply != nil
	if !explicit && m.needReply() && s.proto&ProtocolReplyAck != 0 {
		switch {
		case err == nil:
			reply = &message{payload: putU64(0)}
		case errors.As(err, &r):
			reply, err = &message{payload: putU64(1)}, nil
		}
	}
	if reply != nil {
		reply.req, reply.flags = m.req, flagVersion|flagReply
	}
	return reply, err
}

// oneFD checks that m came with exactly one descriptor. Errors: ErrMessage.
func oneFD(m *message) error {
	if len(m.fds) != 1 {
		return fmt.Errorf("%w: %v with %d descriptors, want 1", ErrMessage, m.req, len(m.fds))
	}
	return nil
}

// take removes m's first descriptor from it.
func take(m *message) int {
	fd := m.fds[0]
	m.fds = m.fds[1:]
	return fd
}

func (s *session) dispatch(m *message) (*message, error) {
	switch m.req {
	case SetMemTable, SetVringKick, SetVringCall, SetVringErr, SetInflightFD, AddMemReg, RemMemReg:
	default:
		if len(m.fds) != 0 {
			return nil, fmt.Errorf("%w: %v with %d descriptors", ErrMessage, m.req, len(m.fds))
		}
	}
	switch m.req {
	case GetFeatures:
		return s.answer(m, s.offers())
	case GetProtocolFeatures:
		return s.answer(m, s.h.ProtocolFeatures()&ProtocolSupported)
	case GetQueueNum:
		return s.answer(m, uint64(s.queues()))
	case GetMaxMemSlots:
		return s.answer(m, MaxMemSlots)
	case GetStatus:
		return s.answer(m, s.status)
	case SetFeatures:
		return nil, s.setFeatures(m)
	case SetProtocolFeatures:
		return nil, s.setProtocolFeatures(m)
	case SetOwner:
		return nil, m.empty()
	case ResetOwner:
		if err := m.empty(); err != nil {
			return nil, err
		}
		return nil, s.disableAll()
	case ResetDevice:
		return nil, s.resetDevice(m)
	case SetStatus:
		return nil, s.setStatus(m)
	case SetMemTable:
		return nil, s.setMemTable(m)
	case AddMemReg:
		return nil, s.addMemReg(m)
	case RemMemReg:
		return nil, s.remMemReg(m)
	case GetConfig:
		return s.getConfig(m)
	case SetConfig:
		c, err := m.config()
		if err != nil {
			return nil, err
		}
		return nil, rejected(s.h.SetConfig(c.offset, c.data))
	case GetInflightFD:
		return s.getInflight(m)
	case SetInflightFD:
		return nil, s.setInflight(m)
	case GetVringBase:
		return s.getVringBase(m)
	case SetVringNum, SetVringAddr, SetVringBase, SetVringEnable, SetVringKick, SetVringCall, SetVringErr:
		return nil, s.setVring(m)
	}
	return nil, fmt.Errorf("%w: unknown %v", ErrMessage, m.req)
}

func (s *session) answer(m *message, v uint64) (*message, error) {
	if err := m.empty(); err != nil {
		return nil, err
	}
	return &message{payload: putU64(v)}, nil
}

func (s *session) setFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if extra := v &^ s.offers(); extra != 0 {
		return fmt.Errorf("%w: features %#x were not offered", ErrMessage, extra)
	}
	if s.acked && v == s.features {
		return nil
	}
	return s.paused(func() error {
		s.features, s.acked = v, true
		return nil
	})
}

func (s *session) setProtocolFeatures(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if extra := v &^ (s.h.ProtocolFeatures() & ProtocolSupported); extra != 0 {
		return fmt.Errorf("%w: protocol features %#x were not offered", ErrMessage, extra)
	}
	set := func() error {
		s.proto, s.protoSet = v, true
		return nil
	}
	if (v^s.proto)&ProtocolMultiQueue != 0 && (s.without != 0 || s.single != len(s.vrings)) {
		return s.paused(set) // queues come or go
	}
	return set()
}

func (s *session) getConfig(m *message) (*message, error) {
	c, err := m.config()
	if err != nil {
		return nil, err
	}
	data, err := s.h.Config(c.offset, uint32(len(c.data)))
	if err != nil || len(data) != len(c.data) {
		return &message{}, nil // an empty payload is the protocol's way to say no
	}
	c.data = data
	return &message{payload: c.encode()}, nil
}

func (s *session) setStatus(m *message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	s.status = v & 0xff
	if s.status == 0 {
		return s.disableAll()
	}
	return nil
}

// disableAll stops every queue and makes the front end start each anew.
func (s *session) disableAll() error {
	var first error
	for i := range s.vrings {
		s.vrings[i].started, s.vrings[i].asked, s.vrings[i].enabled = false, false, false
		if err := s.settle(i); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// resetDevice returns the device to its state after the start of the session; memory stays.
func (s *session) resetDevice(m *message) error {
	if err := m.empty(); err != nil {
		return err
	}
	err := s.disableAll()
	for i := range s.vrings {
		v := &s.vrings[i]
		replaceFD(&v.kick, -1)
		replaceFD(&v.call, -1)
		replaceFD(&v.errs, -1)
		s.vrings[i] = vring{kick: -1, call: -1, errs: -1}
	}
	s.features, s.acked, s.status = 0, false, 0
	return err
}

// paused runs change while no queue runs, and lets queues go on afterwards where they were.
func (s *session) paused(change func() error) error {
	for i := range s.vrings {
		if err := s.stop(i); err != nil {
			return err
		}
	}
	if err := change(); err != nil {
		return err
	}
	for i := range s.vrings {
		if err := s.settle(i); err != nil {
			return err
		}
	}
	return nil
}

// replaceFD closes what *fd holds and puts new there.
func replaceFD(fd *int, new int) {
	if *fd >= 0 {
		unix.Close(*fd)
	}
	*fd = new
}

// close ends the session: see Backend.Serve.
func (s *session) close(err error) {
	for i := range s.vrings {
		err = errors.Join(err, s.stop(i))
	}
	s.h.Disconnected(err)
	for i := range s.vrings {
		v := &s.vrings[i]
		replaceFD(&v.kick, -1)
		replaceFD(&v.call, -1)
		replaceFD(&v.errs, -1)
	}
	for i := range s.mem {
		replaceFD(&s.mem[i].FD, -1)
	}
	s.mem = nil
	if s.log != nil {
		replaceFD(&s.log.FD, -1)
		s.log = nil
	}
	replaceFD(&s.made, -1)
}

// ready reports whether queue i has all that it needs to run.
func (s *session) ready(i int) bool {
	v := &s.vrings[i]
	// Without FeatureProtocol a queue starts enabled; QEMU before 7.2 does not acknowledge that bit, and yet
	// sends SET_VRING_ENABLE.
	enabled := v.enabled || !v.asked && s.features&FeatureProtocol == 0
	return s.acked && len(s.mem) > 0 && i < s.queues() && v.num > 0 && v.hasAddr && v.started && enabled
}

// settle starts or stops queue i so that it runs exactly when it is ready.
func (s *session) settle(i int) error {
	v := &s.vrings[i]
	if !s.ready(i) {
		return s.stop(i)
	}
	if v.running {
		return nil
	}
	q, err := s.mem.queue(v.addr, v.num)
	if err != nil {
		return rejected(err)
	}
	q.Features = s.features &^ (FeatureProtocol | s.withheld())
	state := QueueState{Index: i, Ring: q, LastAvail: v.base, Kick: v.kick, Call: v.call, Err: v.errs}
	if err := s.h.Start(state); err != nil {
		v.started = false // not again until the front end asks
		return rejected(err)
	}
	v.running = true
	return nil
}

// stop stops queue i if it runs.
func (s *session) stop(i int) error {
	v := &s.vrings[i]
	if !v.running {
		return nil
	}
	v.running = false
	base, err := s.h.Stop(i)
	if err != nil {
		return fmt.Errorf("stop queue %d: %w", i, err)
	}
	v.base = base
	return nil
}

// vring returns the queue that a message names. Errors: ErrMessage.
func (s *session) vring(m *message, index uint32) (*vring, int, error) {
	if uint64(index) >= uint64(s.queues()) {
		return nil, 0, fmt.Errorf("%w: %v of queue %d of %d", ErrMessage, m.req, index, s.queues())
	}
	return &s.vrings[index], int(index), nil
}
