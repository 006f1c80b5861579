package vfs

import (
	"encoding/json"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv/abi"
)

// maxQueued bounds the messages that wait for the guest.
const maxQueued = 1024

// ErrControlFull reports a guest that does not read its control channel.
var ErrControlFull = errors.New("vfs: control channel is full")

// Control is a guest's control channel. Its hv side is safe for concurrent use.
type Control struct {
	onMessage func(abi.Message)

	mu    sync.Mutex
	queue [][]byte
	bell  int // eventfd: readable while queue is not empty; -1 until first needed
}

func newControl(f func(abi.Message)) *Control { return &Control{onMessage: f, bell: -1} }

// open makes the eventfd behind the channel. mu is held.
func (k *Control) open() error {
	if k.bell >= 0 {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		k.bell = fd
	}
	return err
}

// Push queues m for the guest. Errors: ErrControlFull, a message longer than abi.MaxMessage.
func (k *Control) Push(m abi.Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > abi.MaxMessage {
		return unix.EMSGSIZE
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) >= maxQueued {
		return ErrControlFull
	}
	if err := k.open(); err != nil {
		return err
	}
	k.queue = append(k.queue, b)
	if len(k.queue) == 1 {
		_, err = unix.Write(k.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return err
}

func (k *Control) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bell >= 0 {
		unix.Close(k.bell)
		k.bell = -1
	}
}

// controlEnd is the guest's end, as an object.
type controlEnd struct{ k *Control }

// pop copies the oldest message to u. It is dropped only when it was delivered.
func (k *Control) pop(u *uio) (uint64, unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		return 0, unix.EAGAIN
	}
	m := k.queue[0]
	if u.left < uint64(len(m)) {
		return 0, unix.EMSGSIZE
	}
	n, e := u.put(m)
	if e != 0 {
		return 0, e
	}
	k.queue[0] = nil
	if k.queue = k.queue[1:]; len(k.queue) == 0 {
		k.queue = nil
		var b [8]byte
		_, _ = unix.Read(k.bell, b[:])
	}
	return n, 0
}

func (o *controlEnd) read(c *Call, f *file, u *uio, _ int64) (uint64, unix.Errno) {
	for {
		n, e := o.k.pop(u)
		if e != unix.EAGAIN || f.nonblock() {
			return n, e
		}
		if e := c.wait(o.k.bell, unix.POLLIN); e != 0 {
			return 0, e
		}
	}
}

func (o *controlEnd) write(c *Call, _ *file, u *uio, _ int64) (uint64, unix.Errno) {
	if u.left > abi.MaxMessage {
		return 0, unix.EMSGSIZE
	}
	b := make([]byte, u.left)
	if e := u.get(b); e != 0 {
		return 0, e
	}
	var m abi.Message
	if json.Unmarshal(b, &m) != nil || len(m.Type) > 64 {
		return 0, unix.EINVAL
	}
	m.Attach = nil
	if o.k.onMessage != nil {
		o.k.onMessage(m)
	}
	return uint64(len(b)), 0
}

func (o *controlEnd) stat(st *stat) { st.mode = unix.S_IFSOCK | 0o600 }
func (o *controlEnd) pollFD() int   { return o.k.bell }
func (o *controlEnd) name() string  { return "anon_inode:[grail-control]" }
func (o *controlEnd) release()      {}
