package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Reconnect restores the session against a back end that was restarted: it connects anew, until it succeeds or
// ctx ends, negotiates the same features, and sends memory, in-flight log and every started queue again. Each
// queue's Kick is rung once, so that requests published meanwhile are seen, and its Call, so that completions
// published by the old back end are.
//
// With an in-flight log the new back end finds out itself what to do again. Without one it starts at the index
// that rewind returns for the queue, normally that of ring.Driver.Rewind, which offers every outstanding
// request again; then rewind must not be nil. The driver must not use the queue meanwhile.
//
// Precondition: the old back end is gone for good and no request of it can still touch memory. Errors:
// ErrRejected when the new back end offers less than was negotiated; ErrMessage; ctx's; rewind's. After an
// error there is no session; Reconnect may be called again.
func (f *Frontend) Reconnect(ctx context.Context, rewind func(index int) (base uint16, err error)) error {
	f.conn.Close()
	features, proto := f.features, f.proto
	opt := f.opt
	defer func() { f.opt = opt }()
	f.opt.Features, f.opt.Require, f.opt.Protocol = features, features, proto
	if err := f.redial(ctx); err != nil {
		f.features, f.proto = features, proto
		return err
	}
	err := f.restore(features, proto, rewind)
	if err != nil {
		f.conn.Close()
		f.features, f.proto = features, proto
	}
	return err
}

// redial connects, again and again while nobody listens.
func (f *Frontend) redial(ctx context.Context) error {
	wait := time.Millisecond
	for {
		err := f.connect(ctx)
		if err == nil || !absent(err) {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-t.C:
		}
		wait = min(2*wait, 50*time.Millisecond)
	}
}

func (f *Frontend) restore(features, proto uint64, rewind func(int) (uint16, error)) error {
	if f.features != features || f.proto != proto {
		return fmt.Errorf("%w: features %#x and %#x, had %#x and %#x", ErrRejected, f.features, f.proto, features, proto)
	}
	if f.mem != nil {
		if err := f.sendMemory(f.mem); err != nil {
			return err
		}
	}
	if f.log != nil {
		if err := f.sendInflight(f.log); err != nil {
			return err
		}
	}
	for _, i := range f.started() {
		q := f.queues[i]
		if f.log == nil {
			base, err := rewind(i)
			if err != nil {
				return fmt.Errorf("rewind queue %d: %w", i, err)
			}
			q.Base = base
		}
		if err := f.sendQueue(uint32(i), q); err != nil {
			return fmt.Errorf("restart queue %d: %w", i, err)
		}
		if err := q.Kick.Ring(); err != nil {
			return err
		}
		if err := q.Call.Ring(); err != nil {
			return err
		}
	}
	return nil
}

// started returns the indices of the started queues in order.
func (f *Frontend) started() []int {
	is := make([]int, 0, len(f.queues))
	for i := range f.queues {
		is = append(is, i)
	}
	slices.Sort(is)
	return is
}

// absent reports that a connection failed because nobody serves the socket now.
func absent(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.EOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
