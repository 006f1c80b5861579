package guest

// waiter is a goroutine that waits for something of a queue.
type waiter struct {
	wake       chan struct{} // capacity 1: one wake-up for each time that it was listed
	prev, next *waiter
	listed     bool
}

// waiters is a list of waiters, oldest first. Its owner's lock guards it.
type waiters struct{ first, last *waiter }

// push appends w, which is not listed.
func (l *waiters) push(w *waiter) {
	w.prev, w.next, w.listed = l.last, nil, true
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
}

// release wakes w and takes it off the list, if it is on it.
func (l *waiters) release(w *waiter) {
	if !w.listed {
		return
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.prev, w.next, w.listed = nil, nil, false
	w.wake <- struct{}{}
}

// wakeFirst wakes the oldest waiter and reports whether there was one.
func (l *waiters) wakeFirst() bool {
	if l.first == nil {
		return false
	}
	l.release(l.first)
	return true
}
