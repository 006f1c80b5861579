package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/ring"
)

// looper is a network's driver VM: it joins the queues of the ports, and gives each frame back to the pair that sent it,
// as soon as that has a buffer.
type looper struct {
	mu    sync.Mutex
	parts map[uint64]*loopQueue // by attachment
	fail  []error               // broken rings
	taken int                   // frames
	most  int                   // queues at once
	odd   []string              // what was wrong with attachments
}

// loopQueue is one queue, and the memory that it lies in.
type loopQueue struct {
	dev   *ring.Device
	index uint16
	port  string // Config
	kick  ring.Doorbell
	call  ring.Doorbell
	maps  [][]byte
}

const loopConfig = `{"mac":"02:00:00:00:00:01"}`

func newLooper() *looper { return &looper{parts: map[uint64]*loopQueue{}} }

// attach serves an attachment of one queue from its used index on.
func (l *looper) attach(a hv.Attachment, fds []int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Log != -1 || a.LogSize != 0 || a.Config != loopConfig || a.Disk != "nic" || a.ReadOnly || len(a.Queues) != 1 {
		l.odd = append(l.odd, fmt.Sprintf("%+v", a))
	}
	q := &loopQueue{index: a.Queues[0].Index, port: a.Config, kick: ring.DoorbellOf(fds[a.Queues[0].Kick]), call: ring.DoorbellOf(-1)}
	if c := a.Queues[0].Call; c >= 0 {
		q.call = ring.DoorbellOf(fds[c])
	}
	for _, p := range l.parts {
		if p.port == q.port && p.index == q.index {
			return errors.New("that queue is attached already")
		}
	}
	var regions []ring.Region
	for _, r := range a.Regions {
		b, err := unix.Mmap(fds[r.FD], int64(r.Offset), int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return errors.Join(err, q.unmap())
		}
		q.maps = append(q.maps, b)
		regions = append(regions, ring.Region{Base: r.Base, Mem: b})
	}
	mem, err := ring.NewMemory(regions...)
	if err != nil {
		return errors.Join(err, q.unmap())
	}
	r := a.Queues[0]
	used, err := mem.Slice(r.Used, 4)
	if err != nil {
		return errors.Join(err, q.unmap())
	}
	q.dev, err = ring.NewDevice(mem, ring.DeviceConfig{
		Queue:     ring.Queue{Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used, Features: a.Features},
		LastAvail: binary.LittleEndian.Uint16(used[2:]), MaxSegments: 64,
	})
	if err != nil {
		return errors.Join(err, q.unmap())
	}
	l.parts[a.ID] = q
	l.most = max(l.most, len(l.parts))
	return q.call.Ring()
}

func (q *loopQueue) unmap() error {
	var err error
	for _, b := range q.maps {
		err = errors.Join(err, unix.Munmap(b))
	}
	return err
}

func (l *looper) detach(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.parts[id]; q != nil {
		delete(l.parts, id)
		if err := q.unmap(); err != nil {
			l.fail = append(l.fail, err)
		}
	}
}

// run serves until stop is closed. It polls: a driver VM knows more.
func (l *looper) run(stop <-chan struct{}) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			l.mu.Lock()
			l.round()
			l.mu.Unlock()
		}
	}
}

// round takes all that complete pairs have.
func (l *looper) round() {
	for _, tx := range l.parts {
		for _, rx := range l.parts {
			if tx.index == rx.index|1 && rx.index&1 == 0 && rx.port == tx.port {
				if err := l.loop(rx, tx); err != nil {
					l.fail = append(l.fail, err)
				}
			}
		}
	}
}

func (l *looper) loop(rx, tx *loopQueue) error {
	var in, out ring.Chain
	tx.kick.Drain()
	for rx.dev.Pending() && tx.dev.Pending() {
		if ok, err := tx.dev.Pop(&in); !ok || err != nil {
			return err
		}
		if ok, err := rx.dev.Pop(&out); !ok || err != nil {
			return err
		}
		b := make([]byte, in.ReadableBytes)
		in.ReadAt(b, 0)
		rx.dev.Push(out.Head, uint32(out.WriteAt(b, 0)))
		tx.dev.Push(in.Head, 0)
		l.taken++
	}
	tx.dev.Arm()
	for _, q := range []*loopQueue{rx, tx} {
		if q.dev.Publish() {
			if err := q.call.Ring(); err != nil {
				return err
			}
		}
	}
	return nil
}
