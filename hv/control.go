package hv

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/inject"
)

// Op is a request on a grailvm's control socket.
type Op string

// The operations.
const (
	OpStatus      Op = "status"      // answers Status
	OpAttach      Op = "attach"      // Attachment and its descriptors; waits for MsgReady, answers when the driver serves it
	OpDetach      Op = "detach"      // ID; answers when nothing of it is in flight, then revokes its memory
	OpRevoke      Op = "revoke"      // ID; replaces its memory by zero pages at once, without asking the driver
	OpAttachments Op = "attachments" // answers the VM's own Attachments with their descriptors
	OpMessage     Op = "message"     // Message is passed to the driver
	OpAsk         Op = "ask"         // Message is passed to the driver; answers its answer of the same type and ID, or an error after AskTimeout
	OpSignal      Op = "signal"      // Signal is sent to the guest
	OpInject      Op = "inject"      // makes the fault that Order says, answers Hit; see hv/inject
	// OpLimit has the VMM keep itself and its guest to Milli thousandths of a core, 0 for no limit: for hosts that do not let graild do that by a
	// cgroup. An engine that cannot refuses.
	OpLimit Op = "limit"
	// OpReclaim bounds the guest's memory as Reclaim says and answers Reclaimed, when the guest is below the bound or that was enforced.
	OpReclaim Op = "reclaim"
	// OpReserve has so many bytes of the guest's memory reserved from now on, as Spec.ReservedBytes has from the start, and answers when there is host memory for them.
	OpReserve Op = "reserve"
	OpKill    Op = "kill" // ends the guest at once; the Report says CauseStop
	// OpExec runs Command in a guest with an agent, with the three descriptors sent along as its standard files. The first should be a pipe whose
	// other end goes with the caller: a read of it may be under way when the program ends. It is answered with
	// Exit when that program has ended. Until then the connection takes OpSignal and OpResize for it, which are not answered. When
	// the connection ends first, the program is ended.
	OpExec   Op = "exec"
	OpResize Op = "resize" // Rows and Columns of the terminal of a program that OpExec started
	// OpPlug plugs Device into a running machine and answers Found, what the guest calls it, once the guest has it. OpUnplug has the guest
	// release a device, which is named as OpPlug named it, and takes it out; one that is in use in the guest stays. Both wait for a guest that is
	// still booting, for at most PlugTimeout. OpDevices answers Devices, once those two are done.
	OpPlug    Op = "plug"
	OpUnplug  Op = "unplug"
	OpDevices Op = "devices"
	// OpConsole joins two descriptors to the console of a guest that has one: what is read from the first, a pipe as with OpExec, is typed there, and what the
	// guest prints is written to the second. It is answered when the guest's console or the first descriptor ends; nobody else's view of the
	// console is disturbed.
	OpConsole Op = "console"
)

// Command is a program to run in a guest that is there already.
type Command struct {
	Argv    []string `json:"argv"`
	Env     []string `json:"env,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
	Rows    uint16   `json:"rows,omitempty"`
	Columns uint16   `json:"columns,omitempty"`
}

// Request is one request on the control socket.
type Request struct {
	Op         Op            `json:"op"`
	ID         uint64        `json:"id,omitempty"`
	Signal     int           `json:"signal,omitempty"`
	Milli      int           `json:"milli,omitempty"`
	Attachment *Attachment   `json:"attachment,omitempty"`
	Message    *abi.Message  `json:"message,omitempty"`
	Order      *inject.Order `json:"order,omitempty"`
	Reclaim    *Reclaim      `json:"reclaim,omitempty"`
	Reserve    uint64        `json:"reserve,omitempty"`
	Command    *Command      `json:"command,omitempty"`
	Rows       uint16        `json:"rows,omitempty"`
	Columns    uint16        `json:"columns,omitempty"`

	Device *ForeignDevice `json:"device,omitempty"`
}

// Response answers one Request. Error is empty on success.
type Response struct {
	Error       string       `json:"error,omitempty"`
	Status      *Status      `json:"status,omitempty"`
	Attachments []Attachment `json:"attachments,omitempty"`
	Message     *abi.Message `json:"message,omitempty"` // the answer to OpAsk
	Hit         *inject.Hit  `json:"hit,omitempty"`     // what OpInject did
	Reclaimed   *Reclaimed   `json:"reclaimed,omitempty"`
	Exit        *int         `json:"exit,omitempty"` // exit code of what OpExec ran, 128+n after signal n

	Found   string          `json:"found,omitempty"`
	Devices []ForeignDevice `json:"devices,omitempty"`
}

// State is how far a VM has come.
type State string

// The states of a running grailvm. A driver is StateReady once it has sent MsgReady; a personality as soon
// as its program runs.
const (
	StateStarting State = "starting"
	StateReady    State = "ready"
)

// Status is what a grailvm says about itself.
type Status struct {
	Name   string         `json:"name"`
	State  State          `json:"state"`
	Engine Engine         `json:"engine"`
	Stats  Stats          `json:"stats"`
	Denied map[string]int `json:"denied,omitempty"`
	// Beat, HostBusy: the driver's heartbeat, and whether a device request of it is being performed by
	// the host right now, so that a slow disk is not taken for a hanging driver.
	Beat     uint64   `json:"beat"`
	HostBusy bool     `json:"hostBusy"`
	Console  []string `json:"console,omitempty"`
	Attached []uint64 `json:"attached,omitempty"` // IDs of the attachments that the driver serves, without those that it reported dead
	Dead     []string `json:"dead,omitempty"`     // MsgDead texts received
	// Fault is the last fault that became a signal, if there was one: a driver that took one is dying.
	Fault *Fault `json:"fault,omitempty"`
	// Starved: the runtime of the program has begun to say that it got no memory (engine process): the program is dying.
	Starved bool `json:"starved,omitempty"`
	// Leader is the host's thread that runs the guest's first thread, as the VMM's PID namespace numbers it; 0: there is none, or not yet.
	Leader int `json:"leader,omitempty"`
	// JailMissing says what of the jail the host did not allow, in words.
	JailMissing []string `json:"jailMissing,omitempty"`
}

// AskTimeout bounds how long OpAsk takes, so that a driver that says nothing holds up nobody. A question that was not
// answered in time is in the way of the next one until it is answered, or the driver's next instance is there.
const AskTimeout = 2 * time.Second

// Bounds of one control message.
const (
	maxControl    = 64 << 10
	maxControlFDs = 200 // Linux's SCM_MAX_FD is 253
)

// ErrClosed reports a control connection whose other end is gone.
var ErrClosed = errors.New("hv: control connection closed")

// Conn is one end of a control connection: a SOCK_SEQPACKET Unix socket whose packets are JSON with
// descriptors beside them. It is not safe for concurrent use.
type Conn struct {
	fd  int
	buf []byte
}

// NewConn takes over fd, a connected SOCK_SEQPACKET socket.
func NewConn(fd int) *Conn { return &Conn{fd: fd, buf: make([]byte, maxControl)} }

// Dial connects to the control socket at path.
func Dial(path string) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hv: socket: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("hv: connect %s: %w", path, err)
	}
	return NewConn(fd), nil
}

// Listen returns a listening control socket at path, which must not exist.
func Listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hv: socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("hv: bind %s: %w", path, err)
	}
	if err := unix.Listen(fd, 8); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("hv: listen %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Serve accepts connections on fd, a listening SOCK_SEQPACKET socket, and calls handle for each on a goroutine of its own, for as long as fd
// is open. The connection is closed when handle returns. Who may connect is decided by who may reach the socket's path.
func Serve(fd int, handle func(*Conn)) {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return
		}
		go func() {
			conn := NewConn(c)
			defer conn.Close()
			handle(conn)
		}()
	}
}

// Shutdown makes a Receive that another goroutine waits in return ErrClosed, and the peer see the end of the
// connection. Close must still be called, after that Receive.
func (c *Conn) Shutdown() error { return unix.Shutdown(c.fd, unix.SHUT_RDWR) }

// Close ends the connection.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// SetTimeout bounds how long a Receive or Send may take; 0 means for ever.
func (c *Conn) SetTimeout(d time.Duration) error {
	tv := unix.NsecToTimeval(int64(d))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

// Send sends v as one packet with copies of fds, which stay the caller's.
func (c *Conn) Send(v any, fds ...int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("hv: encode: %w", err)
	}
	if len(b) > maxControl || len(fds) > maxControlFDs {
		return fmt.Errorf("hv: control message of %d bytes and %d descriptors is too large", len(b), len(fds))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err = unix.Sendmsg(c.fd, b, oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.EPIPE || err == unix.ECONNRESET {
		return ErrClosed
	}
	return err
}

// Receive decodes one packet into v and returns the descriptors that came with it, which are the caller's to
// close, also when an error is returned. Errors: ErrClosed; unix.EAGAIN after the timeout.
func (c *Conn) Receive(v any) ([]int, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxControlFDs))
	var n, oobn, flags int
	var err error
	for {
		n, oobn, flags, _, err = unix.Recvmsg(c.fd, c.buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.ECONNRESET {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, err
	}
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err == nil {
		for i := range msgs {
			if r, err := unix.ParseUnixRights(&msgs[i]); err == nil {
				fds = append(fds, r...)
			}
		}
	}
	if n == 0 && len(fds) == 0 {
		return nil, ErrClosed
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return fds, errors.New("hv: control message truncated")
	}
	if err := json.Unmarshal(c.buf[:n], v); err != nil {
		return fds, fmt.Errorf("hv: control message: %w", err)
	}
	return fds, nil
}

// Call sends req with fds and returns the answer with its descriptors. A refused request is an error.
func (c *Conn) Call(req Request, fds ...int) (Response, []int, error) {
	var resp Response
	if err := c.Send(req, fds...); err != nil {
		return resp, nil, err
	}
	got, err := c.Receive(&resp)
	if err == nil && resp.Error != "" {
		err = fmt.Errorf("%s: %s", req.Op, resp.Error)
	}
	return resp, got, err
}
