package agent

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// Credit is what the sender of a stream may still send.
type Credit struct {
	mu     sync.Mutex
	cond   sync.Cond
	left   int
	closed bool
}

// NewCredit returns a full window.
func NewCredit() *Credit {
	c := &Credit{left: Window}
	c.cond.L = &c.mu
	return c
}

// Take waits until something may be sent, and returns how much of want bytes that is. False: the stream is closed.
func (c *Credit) Take(want int) (int, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.left == 0 && !c.closed {
		c.cond.Wait()
	}
	if c.closed {
		return 0, false
	}
	n := min(want, c.left)
	c.left -= n
	return n, true
}

// Add renews the window by n bytes. Errors: ErrProtocol if it would become larger than Window.
func (c *Credit) Add(n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > Window || c.left+int(n) > Window {
		return fmt.Errorf("%w: a window of more than %d bytes", ErrProtocol, Window)
	}
	c.left += int(n)
	c.cond.Broadcast()
	return nil
}

// Close makes Take fail.
func (c *Credit) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.cond.Broadcast()
}

// CreditFrame returns the frame that renews the window of a program's stream.
func CreditFrame(id uint32, stream FrameType, n int) Frame {
	return Frame{FrameCredit, id, binary.LittleEndian.AppendUint32([]byte{byte(stream)}, uint32(n))}
}

// ParseCredit returns the content of a FrameCredit. Errors: ErrProtocol.
func ParseCredit(p []byte) (stream FrameType, n uint32, err error) {
	if len(p) != 5 {
		return 0, 0, fmt.Errorf("%w: credit of %d bytes", ErrProtocol, len(p))
	}
	return FrameType(p[0]), binary.LittleEndian.Uint32(p[1:]), nil
}

// Inbox holds what has arrived of a stream and is not yet read: at most Window bytes.
type Inbox struct {
	mu     sync.Mutex
	cond   sync.Cond
	chunks [][]byte
	size   int
	closed bool
}

// NewInbox returns an empty Inbox.
func NewInbox() *Inbox {
	i := &Inbox{}
	i.cond.L = &i.mu
	return i
}

// Push adds a copy of b. It does not wait. After Close it does nothing. Errors: ErrProtocol if the peer has sent more than it may.
func (i *Inbox) Push(b []byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	if len(b) > MaxData || i.size+len(b) > Window {
		return fmt.Errorf("%w: more of a stream than its window", ErrProtocol)
	}
	i.size += len(b)
	// Small pieces share one chunk, or a hostile peer's single bytes would cost more than the window.
	if n := len(i.chunks); n > 0 && len(i.chunks[n-1])+len(b) <= MaxData {
		i.chunks[n-1] = append(i.chunks[n-1], b...)
	} else {
		i.chunks = append(i.chunks, append([]byte(nil), b...))
	}
	i.cond.Signal()
	return nil
}

// Pop waits for bytes and returns some of them; false at the end. Their place in the window is free only when the peer is told so.
func (i *Inbox) Pop() ([]byte, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for len(i.chunks) == 0 && !i.closed {
		i.cond.Wait()
	}
	if len(i.chunks) == 0 {
		return nil, false
	}
	b := i.chunks[0]
	i.chunks = i.chunks[1:]
	i.size -= len(b)
	return b, true
}

// Close ends the stream after what it holds.
func (i *Inbox) Close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	i.cond.Broadcast()
}
