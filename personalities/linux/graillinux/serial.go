package main

import (
	"io"
	"sync"

	"github.com/grailos/grail/hv/conlog"
)

// viewBytes is how much a viewer of the console may lag behind before it misses something, in pieces of up to serialPiece bytes.
const (
	viewPieces  = 256
	serialPiece = 4 << 10
)

// serial is the guest's console: what the guest prints goes to the log and to all viewers, what viewers type goes to the guest.
type serial struct {
	log *conlog.Console

	mu    sync.Mutex
	port  io.ReadWriter
	views map[chan []byte]bool
	ended bool
}

func newSerial(log *conlog.Console) *serial { return &serial{log: log, views: map[chan []byte]bool{}} }

// run copies what the guest prints until its console ends.
func (s *serial) run(port io.ReadWriter) {
	s.mu.Lock()
	s.port = port
	s.mu.Unlock()
	buf := make([]byte, serialPiece)
	for {
		n, err := port.Read(buf)
		if n > 0 {
			s.log.Record(buf[:n], true)
			piece := append([]byte(nil), buf[:n]...)
			s.mu.Lock()
			for v := range s.views {
				select {
				case v <- piece:
				default: // a viewer that does not read must not stop the guest
				}
			}
			s.mu.Unlock()
		}
		if err != nil {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for v := range s.views {
		close(v)
	}
	s.views = nil
}

// join types what in has, and writes what the guest prints to out, until in or the console ends.
func (s *serial) join(in io.Reader, out io.Writer) {
	view := make(chan []byte, viewPieces)
	s.mu.Lock()
	port := s.port
	if s.ended || port == nil {
		s.mu.Unlock()
		return
	}
	s.views[view] = true
	s.mu.Unlock()
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		_, _ = io.Copy(port, in)
	}()
	for {
		select {
		case piece, ok := <-view:
			if !ok {
				return
			}
			if _, err := out.Write(piece); err != nil {
				s.leave(view)
				return
			}
		case <-typed:
			s.leave(view)
			return
		}
	}
}

func (s *serial) leave(view chan []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.views, view)
}
