package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/grailos/grail/ring"
	"golang.org/x/sys/unix"
)

// ErrRejected reports that the back end answered a request with a failure, or does not offer what is needed.
var ErrRejected = errors.New("vhostuser: back end refused")

// defaultTimeout bounds the wait for the back end's answer to one request.
const defaultTimeout = 10 * time.Second

// Options says what a front end asks of its back end.
type Options struct {
	Features uint64        // virtio features that the caller can use; those also offered are acknowledged
	Require  uint64        // virtio features without which Dial fails
	Protocol uint64        // protocol features to use if offered; 0 means all that Frontend has a use for
	Timeout  time.Duration // for the answer to one request; 0 means 10 s
}

// QueueSetup is what Frontend.Start needs to start a queue.
type QueueSetup struct {
	Ring ring.Queue     // guest-physical addresses, inside the regions given to SetMemory; Features is ignored
	Base uint16         // next available index: ring.DriverConfig.Base on a new queue
	Kick ring.Doorbell  // rung by us; borrowed until the queue is stopped
	Call ring.Doorbell  // rung by the back end; a negative descriptor means that we poll
	Err  *ring.Doorbell // rung by the back end when the queue is broken; may be nil

	disabled bool // by Enable
}

// Frontend is the client's side of a session. It remembers all that it set, and can restore it on a new
// connection (Reconnect). It is not safe for concurrent use; the queues themselves run beside it, untouched.
type Frontend struct {
	path     string
	opt      Options
	conn     *conn
	features uint64 // acknowledged, FeatureProtocol included
	proto    uint64
	mem      memTable
	queues   map[int]*QueueSetup // started ones
	log      *InflightArea       // FD is ours
}

// Dial connects to the back end that listens at path, negotiates features and takes ownership. ctx bounds the
// connecting, Options.Timeout each request. Errors: ErrRejected when a required feature is missing; ErrMessage;
// the socket's.
func Dial(ctx context.Context, path string, opt Options) (*Frontend, error) {
	if opt.Protocol == 0 {
		// A back end that was promised a status waits for it before it serves.
		opt.Protocol = ProtocolSupported &^ ProtocolStatus
	}
	if opt.Timeout == 0 {
		opt.Timeout = defaultTimeout
	}
	f := &Frontend{path: path, opt: opt, queues: map[int]*QueueSetup{}}
	if err := f.connect(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// connect makes a connection and negotiates on it.
func (f *Frontend) connect(ctx context.Context) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", f.path)
	if err != nil {
		return fmt.Errorf("vhostuser: %w", err)
	}
	f.conn = newConn(c.(*net.UnixConn))
	if err := f.negotiate(); err != nil {
		f.conn.Close()
		return err
	}
	return nil
}

func (f *Frontend) negotiate() error {
	f.proto = 0
	offered, err := f.getU64(GetFeatures)
	if err != nil {
		return err
	}
	if missing := f.opt.Require &^ offered; missing != 0 {
		return fmt.Errorf("%w: features %#x are not offered", ErrRejected, missing)
	}
	f.features = offered & (f.opt.Features | f.opt.Require | FeatureProtocol)
	if offered&FeatureProtocol != 0 {
		have, err := f.getU64(GetProtocolFeatures)
		if err != nil {
			return err
		}
		want := have & f.opt.Protocol
		if err := f.request(&message{req: SetProtocolFeatures, payload: putU64(want)}); err != nil {
			return err
		}
		f.proto = want
	}
	if err := f.request(&message{req: SetOwner}); err != nil {
		return err
	}
	return f.request(&message{req: SetFeatures, payload: putU64(f.features)})
}

// Features returns the negotiated virtio features.
func (f *Frontend) Features() uint64 { return f.features &^ FeatureProtocol }

// ProtocolFeatures returns the negotiated protocol features.
func (f *Frontend) ProtocolFeatures() uint64 { return f.proto }

// QueueNum returns the number of queues that the back end has; 1 when it cannot say.
func (f *Frontend) QueueNum() (uint16, error) {
	if f.proto&ProtocolMultiQueue == 0 {
		return 1, nil
	}
	n, err := f.getU64(GetQueueNum)
	if err == nil && n > MaxQueues {
		err = fmt.Errorf("%w: %d queues", ErrMessage, n)
	}
	return uint16(n), err
}

// Config returns size bytes of the device's configuration space from offset on. Errors: ErrRejected, also when
// the protocol feature was not negotiated; those of the session.
func (f *Frontend) Config(offset, size uint32) ([]byte, error) {
	if f.proto&ProtocolConfig == 0 || offset > MaxConfig || size > MaxConfig-offset {
		return nil, fmt.Errorf("%w: configuration space [%d, +%d)", ErrRejected, offset, size)
	}
	ask := configSpace{offset: offset, data: make([]byte, size)}
	m, err := f.ask(&message{req: GetConfig, payload: ask.encode()})
	if err != nil {
		return nil, err
	}
	if len(m.payload) == 0 {
		return nil, fmt.Errorf("%w: configuration space [%d, +%d)", ErrRejected, offset, size)
	}
	c, err := m.config()
	if err != nil {
		return nil, err
	}
	if c.offset != offset || len(c.data) != int(size) {
		return nil, fmt.Errorf("%w: configuration space [%d, +%d), want [%d, +%d)", ErrMessage, c.offset, len(c.data), offset, size)
	}
	return append([]byte(nil), c.data...), nil
}

// SetMemory gives the back end all the memory that descriptors and queues may lie in, at most MaxRegions. The
// descriptors stay the caller's and must stay open until Close, since Reconnect sends them again.
func (f *Frontend) SetMemory(regions []MemRegion) error {
	var t memTable
	var err error
	for _, r := range regions {
		if t, err = t.with(r); err != nil {
			return err
		}
	}
	if len(t) == 0 || len(t) > MaxRegions {
		return fmt.Errorf("%w: %d regions, want 1..%d", ErrMessage, len(t), MaxRegions)
	}
	if err := f.sendMemory(t); err != nil {
		return err
	}
	f.mem = t
	return nil
}

func (f *Frontend) sendMemory(t memTable) error {
	m := &message{req: SetMemTable, payload: encodeRegions(t)}
	for i := range t {
		m.fds = append(m.fds, t[i].FD)
	}
	return f.request(m)
}

// SetInflight has the back end make an in-flight log for queues of up to queueSize and gives it back to it, so
// that a restarted back end finds it again. Call it before queues are started. It reports false, and does
// nothing, when the back end has no such log.
func (f *Frontend) SetInflight(queues, queueSize uint16) (bool, error) {
	if f.proto&ProtocolInflight == 0 {
		return false, nil
	}
	ask := InflightArea{Queues: queues, QueueSize: queueSize}
	m, err := f.ask(&message{req: GetInflightFD, payload: ask.encode()})
	if err != nil {
		return false, err
	}
	a, err := m.inflight()
	if err == nil && len(m.fds) != 1 {
		err = fmt.Errorf("%w: %v with %d descriptors, want 1", ErrMessage, m.req, len(m.fds))
	}
	if err == nil {
		_, err = checkBacking(m.fds[0], a.Offset, a.Size)
	}
	if err != nil {
		closeFDs(m.fds)
		return false, err
	}
	// QEMU's library answers with its own sizes and leaves the counts as they were asked for.
	a.Queues, a.QueueSize, a.FD = queues, queueSize, m.fds[0]
	if err := f.sendInflight(&a); err != nil {
		unix.Close(a.FD)
		return false, err
	}
	if f.log != nil {
		unix.Close(f.log.FD)
	}
	f.log = &a
	return true, nil
}

func (f *Frontend) sendInflight(a *InflightArea) error {
	return f.request(&message{req: SetInflightFD, payload: a.encode(), fds: []int{a.FD}})
}

// Start starts queue index. The back end may touch the queue from here on.
func (f *Frontend) Start(index int, q QueueSetup) error {
	if index < 0 || index >= MaxQueues {
		return fmt.Errorf("%w: queue %d", ErrMessage, index)
	}
	if err := f.sendQueue(uint32(index), &q); err != nil {
		return fmt.Errorf("start queue %d: %w", index, err)
	}
	f.queues[index] = &q
	return nil
}

func (f *Frontend) sendQueue(index uint32, q *QueueSetup) error {
	a := vringAddr{index: index}
	for _, p := range []struct {
		user *uint64
		gpa  uint64
	}{{&a.desc, q.Ring.Desc}, {&a.avail, q.Ring.Avail}, {&a.used, q.Ring.Used}} {
		var err error
		if *p.user, err = f.mem.user(p.gpa); err != nil {
			return err
		}
	}
	steps := []*message{
		{req: SetVringNum, payload: vringState{index, uint32(q.Ring.Size)}.encode()},
		{req: SetVringBase, payload: vringState{index, uint32(q.Base)}.encode()},
		{req: SetVringAddr, payload: a.encode()},
		bellMessage(SetVringCall, index, q.Call),
		bellMessage(SetVringKick, index, q.Kick),
	}
	if q.Err != nil {
		steps = append(steps, bellMessage(SetVringErr, index, *q.Err))
	}
	if f.features&FeatureProtocol != 0 {
		steps = append(steps, enableMessage(index, !q.disabled))
	}
	for _, m := range steps {
		if err := f.request(m); err != nil {
			return err
		}
	}
	return nil
}

func enableMessage(index uint32, on bool) *message {
	st := vringState{index: index}
	if on {
		st.num = 1
	}
	return &message{req: SetVringEnable, payload: st.encode()}
}

// Enable has the back end process queue index, which is started, or not: a network device's driver turns pairs of
// queues on and off with it. A started queue is enabled. Errors: ErrRejected when the queue is not started or the
// back end has no FeatureProtocol.
func (f *Frontend) Enable(index int, on bool) error {
	q := f.queues[index]
	if q == nil || f.features&FeatureProtocol == 0 {
		return fmt.Errorf("%w: queue %d is not started, or cannot be disabled", ErrRejected, index)
	}
	if err := f.request(enableMessage(uint32(index), on)); err != nil {
		return fmt.Errorf("enable queue %d %t: %w", index, on, err)
	}
	q.disabled = !on
	return nil
}

func bellMessage(req Request, index uint32, b ring.Doorbell) *message {
	m := &message{req: req, payload: vringFD{index: index, noFD: b.FD() < 0}.encode()}
	if b.FD() >= 0 {
		m.fds = []int{b.FD()}
	}
	return m
}

// Stop stops queue index and returns the next available index. When it returns, the back end touches the queue
// and its requests' memory no more.
func (f *Frontend) Stop(index int) (base uint16, err error) {
	if f.queues[index] == nil {
		return 0, fmt.Errorf("%w: queue %d is not started", ErrRejected, index)
	}
	if f.features&FeatureProtocol != 0 {
		if err := f.request(enableMessage(uint32(index), false)); err != nil {
			return 0, fmt.Errorf("stop queue %d: %w", index, err)
		}
	}
	m, err := f.ask(&message{req: GetVringBase, payload: vringState{index: uint32(index)}.encode()})
	if err != nil {
		return 0, fmt.Errorf("stop queue %d: %w", index, err)
	}
	st, err := m.state()
	if err == nil && (st.index != uint32(index) || st.num > 0xffff) {
		err = fmt.Errorf("%w: base %d of queue %d, asked for queue %d", ErrMessage, st.num, st.index, index)
	}
	if err != nil {
		return 0, err
	}
	delete(f.queues, index)
	return uint16(st.num), nil
}

// Disconnected reports, without blocking, whether the back end has closed the connection.
func (f *Frontend) Disconnected() bool {
	fds := []unix.PollFd{{Fd: int32(f.FD()), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil && err != unix.EINTR
}

// FD returns the connection's descriptor, to be polled: it is readable when the back end is gone, since a back
// end sends nothing unasked. -1 when there is no connection.
func (f *Frontend) FD() int {
	fd := -1
	if raw, err := f.conn.SyscallConn(); err == nil {
		raw.Control(func(v uintptr) { fd = int(v) })
	}
	return fd
}

// Close ends the session. Queues that run are abandoned.
func (f *Frontend) Close() error {
	if f.log != nil {
		unix.Close(f.log.FD)
		f.log = nil
	}
	return f.conn.Close()
}

// request sends m and, where the protocol lets the back end say so, waits until it has been done.
func (f *Frontend) request(m *message) error {
	m.flags = flagVersion
	if f.proto&ProtocolReplyAck == 0 {
		f.conn.SetDeadline(time.Now().Add(f.opt.Timeout))
		return f.conn.send(m)
	}
	m.flags |= flagNeedReply
	r, err := f.exchange(m)
	if err != nil {
		return err
	}
	v, err := r.u64()
	if err != nil {
		return err
	}
	if v != 0 {
		return fmt.Errorf("%w: %v", ErrRejected, m.req)
	}
	return nil
}

// ask sends a request that the protocol always answers, and returns the answer.
func (f *Frontend) ask(m *message) (message, error) {
	m.flags = flagVersion
	return f.exchange(m)
}

// exchange sends a request and returns its answer, which has descriptors only if it is an in-flight log.
func (f *Frontend) exchange(m *message) (message, error) {
	f.conn.SetDeadline(time.Now().Add(f.opt.Timeout))
	if err := f.conn.send(m); err != nil {
		return message{}, err
	}
	r, err := f.conn.receive()
	if err != nil {
		return message{}, fmt.Errorf("vhostuser: answer to %v: %w", m.req, err)
	}
	if r.req != m.req || r.flags&flagReply == 0 || len(r.fds) > 0 && m.req != GetInflightFD {
		closeFDs(r.fds)
		return message{}, fmt.Errorf("%w: %v with flags %#x and %d descriptors in answer to %v", ErrMessage, r.req, r.flags, len(r.fds), m.req)
	}
	return r, nil
}

func (f *Frontend) getU64(req Request) (uint64, error) {
	m, err := f.ask(&message{req: req})
	if err != nil {
		return 0, err
	}
	return m.u64()
}
