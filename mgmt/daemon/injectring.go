package daemon

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/inject"
	"github.com/grailos/grail/mgmt/api"
)

// foundOut are the driver's lies that others can find out. What is not among them has to be asked for by name: a driver that says that it has done what it has
// not done is believed.
var foundOut = []string{"used-jump", "used-back", "used-id", "used-length", "log", "wild"}

// driverLies has the driver's program break the rules of its rings.
func (i *driverInstance) driverLies(req *api.Inject, random *rand.Rand) (string, error) {
	set := map[string]string{}
	for _, name := range program.Lies() {
		set[name] = name
	}
	name := req.Set["lie"]
	if name == "" {
		name = foundOut[random.IntN(len(foundOut))]
	}
	name, _, err := pick(set, name, random)
	if err != nil {
		return "", err
	}
	return "the driver was told to lie to its clients: " + name, i.inject("lie:" + name)
}

// A clientLie spoils what a client writes of a queue: w writes at one of the client's addresses, and idx is its index in the available ring.
type clientLie func(q *hv.AttachRing, random *rand.Rand, idx uint16, w func(addr uint64, b []byte) error) (what string, err error)

func le16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }

// descriptor is a descriptor's wire form (virtio 1.2 §2.7.5 The Virtqueue Descriptor Table).
func descriptor(addr uint64, n uint32, flags, next uint16) []byte {
	b := binary.LittleEndian.AppendUint64(nil, addr)
	b = binary.LittleEndian.AppendUint32(b, n)
	return append(append(b, le16(flags)...), le16(next)...)
}

// offer makes descriptor head available as the client's next request, with d as the descriptor.
func offer(q *hv.AttachRing, head, idx uint16, d []byte, w func(uint64, []byte) error) error {
	if d != nil {
		if err := w(q.Desc+16*uint64(head), d); err != nil {
			return err
		}
	}
	if err := w(q.Avail+4+2*uint64(idx&(q.Size-1)), le16(head)); err != nil {
		return err
	}
	return w(q.Avail+2, le16(idx+1))
}

// clientLies are the ways in which a client can break the rules, by name.
var clientLies = map[string]clientLie{
	"index": func(q *hv.AttachRing, _ *rand.Rand, idx uint16, w func(uint64, []byte) error) (string, error) {
		to := idx + 2*q.Size + 1
		return fmt.Sprintf("the available index jumped from %d to %d", idx, to), w(q.Avail+2, le16(to))
	},
	"head": func(q *hv.AttachRing, random *rand.Rand, idx uint16, w func(uint64, []byte) error) (string, error) {
		head := q.Size + uint16(random.IntN(1000))
		return fmt.Sprintf("descriptor %d, which is not there, was made available", head), offer(q, head, idx, nil, w)
	},
	"loop": func(q *hv.AttachRing, random *rand.Rand, idx uint16, w func(uint64, []byte) error) (string, error) {
		head := uint16(random.IntN(int(q.Size)))
		const next = 1
		return fmt.Sprintf("descriptor %d, which leads to itself, was made available", head), offer(q, head, idx, descriptor(q.Desc, 16, next, head), w)
	},
	"address": func(q *hv.AttachRing, random *rand.Rand, idx uint16, w func(uint64, []byte) error) (string, error) {
		head, addr := uint16(random.IntN(int(q.Size))), random.Uint64()|1<<63
		return fmt.Sprintf("descriptor %d, which names address %#x, was made available", head, addr), offer(q, head, idx, descriptor(addr, 512, 0, 0), w)
	},
	"length": func(q *hv.AttachRing, random *rand.Rand, idx uint16, w func(uint64, []byte) error) (string, error) {
		head := uint16(random.IntN(int(q.Size)))
		return fmt.Sprintf("descriptor %d, which is %d bytes long, was made available", head, uint32(1<<32-1)), offer(q, head, idx, descriptor(q.Desc, 1<<32-1, 0, 0), w)
	},
	"wild": func(q *hv.AttachRing, random *rand.Rand, idx uint16, w func(uint64, []byte) error) (string, error) {
		b := make([]byte, 16*int(q.Size))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		if err := w(q.Desc, b); err != nil {
			return "", err
		}
		head := uint16(random.IntN(int(q.Size)))
		return fmt.Sprintf("%d bytes of descriptors were replaced by random ones, and descriptor %d was made available", len(b), head), offer(q, head, idx, nil, w)
	},
}

// clientBreaks breaks a ring of one of the driver's clients, from the client's side.
func (dr *driver) clientBreaks(req *api.Inject, random *rand.Rand) (string, error) {
	c, err := dr.clientNamed(req.Set["client"], random)
	if err != nil {
		return "", err
	}
	name, lie, err := pick(clientLies, req.Set["lie"], random)
	if err != nil {
		return "", err
	}
	q := &c.att.Queues[random.IntN(len(c.att.Queues))]
	idx, ok := c.read16(q.Avail + 2)
	if !ok {
		return "", api.Errorf(api.Busy, "the rings of client %s cannot be reached", c.att.Client)
	}
	what, err := lie(q, random, idx, c.write)
	if err != nil {
		return "", fmt.Errorf("write to the memory of client %s: %w", c.att.Client, err)
	}
	c.kick()
	return fmt.Sprintf("client %s, %s %s, queue %d: %s (%s)", c.att.Client, c.what(), c.att.Disk, q.Index, what, name), nil
}

// clientNamed returns the client of that name, or one by seed.
func (dr *driver) clientNamed(name string, random *rand.Rand) (*client, error) {
	dr.mu.Lock()
	list := dr.clientList()
	dr.mu.Unlock()
	var have []string
	var fit []*client
	for _, c := range list {
		have = append(have, c.att.Client)
		if len(c.att.Queues) > 0 && (name == "" || c.att.Client == name) {
			fit = append(fit, c)
		}
	}
	if len(fit) == 0 {
		return nil, api.Errorf(api.Invalid, "driver %s has no client %q; it has %s", dr.name(), name, quoted(have))
	}
	return fit[random.IntN(len(fit))], nil
}

// write changes bytes at an address of the client, of what it shares with its driver.
func (c *client) write(addr uint64, b []byte) error {
	n := uint64(len(b))
	for _, r := range c.att.Regions {
		if addr < r.Base || r.Size < n || addr-r.Base > r.Size-n || r.FD < 0 || c.kinds[r.FD] != memoryFile {
			continue
		}
		// graild's descriptor of what the client alone may write is for reading, as its driver's is.
		f, err := hv.ForWriting(c.files[r.FD])
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(b, int64(r.Offset+(addr-r.Base)))
		return err
	}
	return unix.EFAULT
}

// storm rings doorbells of all clients for a time, in the background.
func (dr *driver) storm(req *api.Inject) (string, error) {
	set := &options{set: req.Set}
	which := side(set)
	ms, rate := set.number("ms", 1000, 1, 60_000), set.number("rate", 20_000, 1, 1_000_000)
	if set.err != nil {
		return "", set.err
	}
	dr.mu.Lock()
	list := dr.clientList()
	dr.mu.Unlock()
	var sides []string
	if which != inject.OpCall {
		sides = append(sides, "kick")
	}
	if which != inject.OpKick {
		sides = append(sides, "call")
	}
	dr.d.background.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for end, owed := time.Now().Add(time.Duration(ms)*time.Millisecond), 0.0; time.Now().Before(end); {
			select {
			case <-dr.d.closing:
				return
			case <-dr.stopped:
				return
			case <-tick.C:
			}
			for owed += float64(rate) / 1000; owed >= 1; owed-- {
				for _, c := range list {
					if c.leaving() {
						continue
					}
					if which != inject.OpCall {
						c.kick()
					}
					if which != inject.OpKick {
						c.call()
					}
				}
			}
		}
	})
	return fmt.Sprintf("ringing the %s doorbells of %d clients %d times a second for %d ms", strings.Join(sides, " and "), len(list), rate, ms), nil
}
