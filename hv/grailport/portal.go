package main

import (
	"fmt"
	"sync"

	"github.com/grailos/grail/hv"
)

// Bounds of what clients can make a portal hold.
const (
	maxClients     = 128 // beside those of network cards: see maxPortClients
	maxAttachments = hv.MaxPortalQueues
	maxErrors      = 16
	maxErrorText   = 300
)

// portal is the state that clients' sessions and graild's connections share.
type portal struct {
	spec     hv.PortalSpec
	capacity int // clients

	mu          sync.Mutex
	seq         uint64
	changed     chan struct{} // closed and replaced when seq moves
	nextID      uint64
	attachments []*attachment // in the order of their IDs
	clients     int
	connections uint64 // so far, to name clients by
	errors      []string
}

func newPortal(spec hv.PortalSpec) *portal {
	p := &portal{spec: spec, capacity: maxClients, seq: 1, changed: make(chan struct{}), nextID: spec.FirstID}
	for _, d := range spec.Devices {
		if d.Kind == hv.PortalNet {
			p.capacity += maxPortClients
		}
	}
	return p
}

// bump announces a change. p.mu is held.
func (p *portal) bump() {
	p.seq++
	close(p.changed)
	p.changed = make(chan struct{})
}

// state returns what graild is to know. p.mu is held.
func (p *portal) state() *hv.PortalState {
	s := &hv.PortalState{Seq: p.seq, Clients: p.clients, Errors: append([]string(nil), p.errors...)}
	for _, a := range p.attachments {
		s.Attachments = append(s.Attachments, hv.PortalAttachment{ID: a.ID, Client: a.Client, Disk: a.Disk, Leaving: a.leaving})
	}
	return s
}

// find returns attachment id, or nil. p.mu is held.
func (p *portal) find(id uint64) *attachment {
	for _, a := range p.attachments {
		if a.ID == id {
			return a
		}
	}
	return nil
}

// enter counts a new client and names it. False means that there are too many.
func (p *portal) enter(device string) (name string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients >= p.capacity {
		return "", false
	}
	p.clients++
	p.connections++
	p.bump()
	return fmt.Sprintf("vhost-user %s #%d", device, p.connections), true
}

// leave undoes enter, and notes why the client went.
func (p *portal) leave(name string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients--
	if err != nil {
		p.note(fmt.Sprintf("%s: %v", name, err))
	}
	p.bump()
}

// note keeps an error for graild. p.mu is held.
func (p *portal) note(text string) {
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "…"
	}
	p.errors = append(p.errors, text)
	if n := len(p.errors) - maxErrors; n > 0 {
		p.errors = p.errors[n:]
	}
}
