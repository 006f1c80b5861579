package load

import (
	"context"
	"fmt"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtionet"
)

// NIC is one network card on a vhost-user back end: a queue to receive by and one to send by, with a buffer in shared memory for each
// descriptor. It is not safe for concurrent use.
type NIC struct {
	Features uint64 // negotiated virtio features

	front  *vhostuser.Frontend
	shared *ring.Shared
	rx, tx *nicQueue
	done   []ring.Completion // one for each buffer of a queue
}

// nicQueue is one queue of a NIC.
type nicQueue struct {
	drv        *ring.Driver
	kick, call ring.Doorbell
	at         uint64 // offset of the buffers
	kicks      uint64
}

// NICQueueSize is the usual size of a queue, that of QEMU's virtio-net.
const NICQueueSize = 256

const nicBuffer = 2048

// DialNIC connects to the back end at path, starts both queues, each of so many entries, and offers all buffers for receiving. The back end is told
// not to ring: the client polls. Without offloads, a frame is one buffer. The caller closes it.
func DialNIC(ctx context.Context, path string, entries uint16) (_ *NIC, err error) {
	n := &NIC{done: make([]ring.Completion, entries)}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	l, err := ring.LayoutOf(entries)
	if err != nil {
		return nil, err
	}
	each := uint64(entries) * nicBuffer
	if n.shared, err = ring.NewShared("grail-bench-nic", 2*l.Bytes+2*each); err != nil {
		return nil, err
	}
	n.front, err = vhostuser.Dial(ctx, path, vhostuser.Options{Features: ring.FeatureEventIdx | virtionet.FeatureMAC, Require: ring.FeatureVersion1})
	if err != nil {
		return nil, err
	}
	n.Features = n.front.Features()
	m, err := ring.NewMemory(ring.Region{Base: baseGPA, Mem: n.shared.Mem})
	if err != nil {
		return nil, err
	}
	err = n.front.SetMemory([]vhostuser.MemRegion{{FD: n.shared.FD(), Size: uint64(len(n.shared.Mem)), GPA: baseGPA, User: baseUser}})
	if err != nil {
		return nil, err
	}
	setups := make([]vhostuser.QueueSetup, 2)
	for i, q := range []**nicQueue{&n.rx, &n.tx} {
		*q = &nicQueue{kick: ring.DoorbellOf(-1), call: ring.DoorbellOf(-1), at: 2*l.Bytes + uint64(i)*each}
		for _, b := range []*ring.Doorbell{&(*q).kick, &(*q).call} {
			if *b, err = ring.NewDoorbell(); err != nil {
				return nil, err
			}
		}
		setups[i] = vhostuser.QueueSetup{Ring: l.At(baseGPA+uint64(i)*l.Bytes, n.Features), Kick: (*q).kick, Call: (*q).call}
		if (*q).drv, err = ring.NewDriver(m, ring.DriverConfig{Queue: setups[i].Ring}); err != nil {
			return nil, err
		}
	}
	for i := range uint64(entries) {
		if err := n.offer(i); err != nil {
			return nil, err
		}
	}
	n.rx.drv.Publish()
	for i := range setups {
		if err := n.front.Start(i, setups[i]); err != nil {
			return nil, fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return n, nil
}

// Close ends the session and frees the memory.
func (n *NIC) Close() {
	if n.front != nil {
		n.front.Close()
	}
	for _, q := range []*nicQueue{n.rx, n.tx} {
		if q != nil {
			q.kick.Close()
			q.call.Close()
		}
	}
	if n.shared != nil {
		n.shared.Close()
	}
}

// buffer returns buffer i of a queue.
func (n *NIC) buffer(q *nicQueue, i uint64) []byte {
	return n.shared.Mem[q.at+i*nicBuffer:][:nicBuffer]
}

// offer gives the back end buffer i to fill.
func (n *NIC) offer(i uint64) error {
	return n.rx.drv.Add(nil, []ring.Segment{{Addr: baseGPA + n.rx.at + i*nicBuffer, Len: nicBuffer}}, i)
}

// send offers the first bytes of buffer i, header included.
func (n *NIC) send(i uint64, bytes int) error {
	return n.tx.drv.Add([]ring.Segment{{Addr: baseGPA + n.tx.at + i*nicBuffer, Len: uint32(bytes)}}, nil, i)
}

// publish shows what was added to the back end, and rings if it asks for that.
func (q *nicQueue) publish() error {
	if !q.drv.Publish() {
		return nil
	}
	q.kicks++
	return q.kick.Ring()
}
