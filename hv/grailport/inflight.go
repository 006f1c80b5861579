package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
)

// inflight is the memory of an in-flight log, in which the region of queue i starts at i times the length of a
// region for the queue's size.
type inflight struct {
	fd   int // -1: none
	size uint64
}

// noLog stands for none. It is never written.
var noLog = inflight{fd: -1}

// newInflight makes a log for one queue, zeroed.
func newInflight(index int, size uint16) (inflight, error) {
	n := uint64(index+1) * ring.InflightBytes(size)
	f, err := hv.NewMemory("grail-inflight", n)
	if err != nil {
		return inflight{fd: -1}, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return inflight{fd: -1}, fmt.Errorf("duplicate log: %w", err)
	}
	return inflight{fd: fd, size: n}, nil
}

func (l *inflight) close() {
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

// nextAvail returns the next available index of a queue that nobody serves, whose used ring stands at used:
// what is in flight stays in the log, for whoever serves the queue next. When nothing is, the log is made to
// look never used, because the client may start its rings anew. start is the index with which the queue was
// started.
func (l *inflight) nextAvail(index int, size, used, start uint16) (uint16, error) {
	b, err := unix.Mmap(l.fd, 0, int(l.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("map in-flight log: %w", err)
	}
	defer unix.Munmap(b)
	n := ring.InflightBytes(size)
	log, err := ring.NewInflight(b[uint64(index)*n:][:n:n], size)
	if err != nil {
		return 0, err
	}
	heads, fresh, err := log.Recover(used)
	if err != nil {
		return 0, err
	}
	if fresh {
		log.Reset()
		return start, nil
	}
	if len(heads) == 0 {
		log.Reset()
	}
	return used + uint16(len(heads)), nil
}
