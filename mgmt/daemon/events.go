package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/grailos/grail/mgmt/api"
)

// maxEvents is how many events are kept for those who ask later.
const maxEvents = 1000

// events are the newest records of graild's log of level Info and above: what graild says, it says once, and people and programs hear the same.
type events struct {
	mu      sync.Mutex
	list    []api.Event   // by Seq, without gaps
	next    uint64        // Seq of the next one
	changed chan struct{} // closed and replaced with each event
}

func newEvents() *events { return &events{next: 1, changed: make(chan struct{})} }

func (e *events) add(v api.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v.Seq = e.next
	e.next++
	if len(e.list) == maxEvents {
		e.list = append(e.list[:0:0], e.list[1:]...)
	}
	e.list = append(e.list, v)
	close(e.changed)
	e.changed = make(chan struct{})
}

// after returns the events that are newer than seq, and a channel that is closed when there are more.
func (e *events) after(seq uint64) ([]api.Event, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := e.next - uint64(len(e.list))
	skip := uint64(0)
	if seq >= first {
		skip = min(seq-first+1, uint64(len(e.list)))
	}
	return append([]api.Event(nil), e.list[skip:]...), e.changed
}

// eventHandler makes an event of each record, which goes on to the log.
type eventHandler struct {
	slog.Handler
	events *events
	attrs  []slog.Attr
}

// Handle implements slog.Handler.
func (h eventHandler) Handle(ctx context.Context, r slog.Record) error {
	v := api.Event{Time: r.Time, Level: r.Level.String(), Event: r.Message, Details: map[string]string{}}
	note := func(a slog.Attr) bool {
		v.Details[a.Key] = a.Value.String()
		return true
	}
	for _, a := range h.attrs {
		note(a)
	}
	r.Attrs(note)
	h.events.add(v)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h eventHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.Handler = h.Handler.WithAttrs(attrs)
	h.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return h
}

// WithGroup implements slog.Handler.
func (h eventHandler) WithGroup(name string) slog.Handler {
	h.Handler = h.Handler.WithGroup(name)
	return h
}

// serveEvents answers with the events, one line of JSON each; with "follow" also with those to come, until the client goes or graild ends.
func (d *Daemon) serveEvents(w http.ResponseWriter, r *http.Request) {
	var seq uint64
	if s := r.FormValue("after"); s != "" {
		if _, err := fmt.Sscan(s, &seq); err != nil {
			d.answer(w, r, nil, api.Errorf(api.Invalid, "after %q is no number", s))
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	for {
		list, more := d.events.after(seq)
		for _, v := range list {
			if out.Encode(v) != nil {
				return
			}
			seq = v.Seq
		}
		if r.FormValue("follow") == "" {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		case <-d.closing:
			return
		}
	}
}
