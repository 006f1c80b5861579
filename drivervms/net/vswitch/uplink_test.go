package vswitch

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

// socketUplink is an uplink on a socket.
type socketUplink struct{ fd int }

func (u *socketUplink) Offloads() uint64 { return 0 }
func (u *socketUplink) FD() int          { return u.fd }
func (u *socketUplink) Send(frames []Packet) {
	for i := range frames {
		_, err := unix.Writev(u.fd, frames[i].Segs)
		frames[i].Failed = err != nil
	}
}

func (u *socketUplink) Receive(bufs [][]byte, lens []int) (n int) {
	for n < len(bufs) {
		k, err := unix.Read(u.fd, bufs[n])
		if err != nil || k <= 0 {
			break
		}
		lens[n] = k
		n++
	}
	return n
}

func newSocketUplink(t *testing.T) (u *socketUplink, far int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return &socketUplink{fds[0]}, fds[1]
}

// from returns a frame to a from outside, with its header.
func (b *bed) from(v *vm) []byte {
	return append(make([]byte, virtionet.HeaderBytes), between(newVM(b.t, 99, portAt(99, 0), vmOptions{}), v, "in")...)
}

// TestUplinkOfSpare: a switch without ports takes nothing from the uplink: a spare has the same one as the switch that serves.
func TestUplinkOfSpare(t *testing.T) {
	u, far := newSocketUplink(t)
	defer unix.Close(far)
	a := newVM(t, 1, portAt(1, 0), vmOptions{})
	s := newBed(t, u)
	if _, err := unix.Write(far, s.from(a)); err != nil {
		t.Fatal(err)
	}
	if w, err := s.Wait(time.Millisecond); w != ring.WakeTimeout || err != nil {
		t.Errorf("a switch without ports woke up: %v, %v", w, err)
	}
	s.run()
	s.attach(a)
	if w, err := s.Wait(-1); w != ring.WakeWork || err != nil {
		t.Errorf("%v, %v", w, err)
	}
	s.run()
	if len(a.recv()) != 1 {
		t.Error("the frame is lost")
	}
	s.Detach(a.id)
	if _, err := unix.Write(far, s.from(a)); err != nil {
		t.Fatal(err)
	}
	if w, err := s.Wait(time.Millisecond); w != ring.WakeTimeout || err != nil {
		t.Errorf("after the last port: %v, %v", w, err)
	}
}

// TestUplinkHangsUp: the switch takes what the other end has left, and then goes on without it, asleep.
func TestUplinkHangsUp(t *testing.T) {
	u, far := newSocketUplink(t)
	a, b := newVM(t, 1, portAt(1, 0), vmOptions{}), newVM(t, 2, portAt(2, 0), vmOptions{})
	s := newBed(t, u, a, b)
	if _, err := unix.Write(far, s.from(a)); err != nil {
		t.Fatal(err)
	}
	unix.Close(far)
	for range 10 {
		if w, err := s.Wait(time.Millisecond); err != nil {
			t.Fatal(err)
		} else if w == ring.WakeTimeout {
			break
		}
		s.run()
	}
	if len(a.recv()) != 1 {
		t.Error("the last frame is lost")
	}
	before := s.Stats().Sleeps
	if w, err := s.Wait(10 * time.Millisecond); w != ring.WakeTimeout || err != nil || s.Stats().Sleeps > before+1 {
		t.Errorf("%v, %v, %d sleeps", w, err, s.Stats().Sleeps-before)
	}
	out := between(a, b, "out")
	copy(out, []byte{2, 0xaa, 0, 0, 0, 1})
	out[33] = 99
	a.send(out)
	a.send(between(a, b, "x"))
	s.run()
	if len(b.recv()) != 1 || s.UplinkCounters().Drops[DropUplink] != 0 || s.drops(a, DropUplink) != 1 {
		c := s.UplinkCounters()
		t.Errorf("uplink %v, sender %d", c.Map(), s.drops(a, DropUplink))
	}
}
