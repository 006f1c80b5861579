package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/grailos/grail/mgmt/api"
)

// watcher collects the events of a rig's graild, and of its successors.
type watcher struct {
	cancel context.CancelFunc
	over   chan struct{}

	mu      sync.Mutex
	list    []api.Event   // since the last fault
	changed chan struct{} // closed and replaced with each event
}

// watchPause is how often a graild that is gone is asked for events.
const watchPause = 10 * time.Millisecond

func (r *rig) watch() *watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{cancel: cancel, over: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		defer close(w.over)
		for after := uint64(0); ctx.Err() == nil; {
			err := r.api.Events(ctx, after, true, func(v api.Event) error {
				after = v.Seq
				w.add(v)
				return nil
			})
			if api.Down(err) {
				after = 0 // the next graild counts anew
			}
			select {
			case <-ctx.Done():
			case <-time.After(watchPause):
			}
		}
	}()
	return w
}

func (w *watcher) add(v api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, v)
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watcher) stop() {
	w.cancel()
	<-w.over
}

// fresh forgets what happened so far.
func (w *watcher) fresh() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = nil
}

// seen returns the events since the last fault, and a channel that is closed with the next one.
func (w *watcher) seen() ([]api.Event, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list), w.changed
}

// has reports whether there was such an event since the last fault.
func (w *watcher) has(event string) bool {
	list, _ := w.seen()
	return slices.ContainsFunc(list, func(v api.Event) bool { return v.Event == event })
}

// await returns an event of that kind about a driver, as soon as there is one. Errors: there is none within the time.
func (w *watcher) await(ctx context.Context, event, driver string, within time.Duration) (api.Event, error) {
	limit := time.NewTimer(within)
	defer limit.Stop()
	for {
		list, more := w.seen()
		for _, v := range list {
			if v.Event == event && v.Details["driver"] == driver {
				return v, nil
			}
		}
		select {
		case <-more:
		case <-limit.C:
			return api.Event{}, fmt.Errorf("no event %q of driver %s within %v", event, driver, within)
		case <-ctx.Done():
			return api.Event{}, ctx.Err()
		}
	}
}
