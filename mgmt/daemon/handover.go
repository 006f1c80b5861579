package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

// handover takes descriptors from clients and gives tickets for them.
type handover struct {
	log      *slog.Logger
	listener *net.UnixListener
	dir      *os.File // keeps a long socket path usable

	mu      sync.Mutex
	tickets map[string]map[api.Role]*os.File
}

// Bounds of a handover.
const (
	maxHandover     = 16
	maxTickets      = 256
	handoverTimeout = 10 * time.Second
)

func newHandover(path string, log *slog.Logger) (*handover, error) {
	h := &handover{log: log, tickets: map[string]map[api.Role]*os.File{}}
	l, err := listenUnix("unixpacket", path)
	if err != nil {
		return nil, err
	}
	h.listener = l
	go h.serve()
	return h, nil
}

// listenUnix replaces the socket at path, which a killed predecessor left behind; the caller holds graild's lock.
func listenUnix(network, path string) (l *net.UnixListener, err error) {
	err = place.WithSocket(path, func(short string) error {
		if err := os.Remove(short); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err = net.ListenUnix(network, &net.UnixAddr{Name: short, Net: network})
		return err
	})
	if err == nil {
		// A successor may have its own socket there by the time this one is closed.
		l.SetUnlinkOnClose(false)
	}
	return l, err
}

func (h *handover) close() {
	h.listener.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, files := range h.tickets {
		closeFiles(files)
		delete(h.tickets, id)
	}
}

func (h *handover) serve() {
	for {
		c, err := h.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			h.log.Error("handover", "error", err)
			return
		}
		go func() {
			defer c.Close()
			if err := h.take(c); err != nil && !errors.Is(err, hv.ErrClosed) {
				h.log.Warn("handover", "error", err)
			}
		}()
	}
}

// take serves one connection: a Handover in, a Ticket out, and the descriptors stay until the client goes.
func (h *handover) take(c *net.UnixConn) error {
	f, err := c.File()
	if err != nil {
		return err
	}
	defer f.Close()
	// A Conn of its own descriptor, in blocking mode: (*os.File).Fd sees to that.
	fd, err := dup(f)
	if err != nil {
		return err
	}
	conn := hv.NewConn(fd)
	defer conn.Close()
	if err := conn.SetTimeout(handoverTimeout); err != nil {
		return err
	}
	var req api.Handover
	fds, err := conn.Receive(&req)
	files := map[api.Role]*os.File{}
	for i, fd := range fds {
		f := hv.KeptFile(fd, "handover")
		if err != nil || i >= len(req.Roles) || i >= maxHandover || files[req.Roles[i]] != nil {
			f.Close()
			continue
		}
		files[req.Roles[i]] = f
	}
	if err != nil {
		closeFiles(files)
		return err
	}
	if len(files) != len(req.Roles) {
		closeFiles(files)
		return conn.Send(api.Ticket{Error: fmt.Sprintf("%d roles and %d descriptors", len(req.Roles), len(fds))})
	}
	id := rand.Text()
	h.mu.Lock()
	if len(h.tickets) >= maxTickets {
		h.mu.Unlock()
		closeFiles(files)
		return conn.Send(api.Ticket{Error: "graild is too busy; try again"})
	}
	h.tickets[id] = files
	h.mu.Unlock()
	defer func() { closeFiles(h.claim(id)) }()
	if err := conn.Send(api.Ticket{Ticket: id}); err != nil {
		return err
	}
	// The connection's end, or anything else that comes, ends the ticket.
	if err := conn.SetTimeout(0); err != nil {
		return err
	}
	more, err := conn.Receive(&req)
	closeFDs(more)
	return err
}

// claim takes the files of a ticket, once.
func (h *handover) claim(id string) map[api.Role]*os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	files := h.tickets[id]
	delete(h.tickets, id)
	return files
}

func closeFiles(files map[api.Role]*os.File) {
	for _, f := range files {
		f.Close()
	}
}
