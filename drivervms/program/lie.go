package program

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/grailos/grail/ring"
)

// Ring is one queue of an attachment, as a lying driver spoils it.
type Ring struct {
	ring.Queue
	Memory *ring.Memory
	Log    []byte // nil: none
}

// liePrefix begins what MsgInject says to a driver that is to lie.
const liePrefix = "lie:"

// lie spoils what a driver writes of one queue. used is the used ring, size the queue's.
type lie func(used, log []byte, size uint16)

// Offsets in a used ring (virtio 1.2 §2.7.8) and in an in-flight log (vhost-user, QueueRegionSplit and DescStateSplit).
const (
	usedIdx  = 2
	usedRing = 4

	logVersion = 8
	logUsedIdx = 14
	logEntries = 16
	logEntry   = 16
)

// lies are the ways to break the rules of a ring, by name. A driver that was told to lie does so at the end of every round, so
// that what it does rightly meanwhile does not mend it.
var lies = map[string]lie{
	"used-jump": func(used, _ []byte, size uint16) { advance(used, 2*size+1) },
	"used-back": func(used, _ []byte, _ uint16) { advance(used, 0xfffd) },
	"used-id":   func(used, _ []byte, size uint16) { complete(used, size, uint32(size)+7, 1) },
	// The one that was completed last is completed once more.
	"used-twice": func(used, _ []byte, size uint16) {
		last := binary.LittleEndian.Uint16(used[usedIdx:]) - 1
		complete(used, size, binary.LittleEndian.Uint32(element(used, size, last)), 1)
	},
	"used-length": func(used, log []byte, size uint16) {
		if head, ok := taken(log, size); ok {
			complete(used, size, uint32(head), 1<<31)
		} else {
			complete(used, size, 0, 1<<31)
		}
	},
	// A request that was taken is completed, and nothing was done.
	"used-nothing": func(used, log []byte, size uint16) {
		if head, ok := taken(log, size); ok {
			complete(used, size, uint32(head), 0)
		} else {
			complete(used, size, 0, 0)
		}
	},
	"log": func(_, log []byte, _ uint16) {
		if log != nil {
			binary.LittleEndian.PutUint16(log[logVersion:], 0x4242)
		}
	},
	"log-entry": func(_, log []byte, size uint16) {
		for i := range int(size) {
			if at := logEntries + logEntry*i; at < len(log) {
				log[at] = 0x55
			}
		}
	},
	"log-index": func(_, log []byte, _ uint16) {
		if log != nil {
			binary.LittleEndian.PutUint16(log[logUsedIdx:], binary.LittleEndian.Uint16(log[logUsedIdx:])-3)
		}
	},
	"wild": func(used, log []byte, _ uint16) {
		for i := range used {
			used[i] = byte(i)*7 + 3
		}
		for i := range log {
			log[i] = byte(i)*5 + 1
		}
	},
}

// defame is the lie that is told to the host: that every client broke the rules.
const defame = "defame"

// Lies returns the names of the lies, each of which follows "lie:" in what MsgInject says.
func Lies() []string { return append(slices.Sorted(maps.Keys(lies)), defame) }

// element returns entry i of a used ring.
func element(used []byte, size, i uint16) []byte { return used[usedRing+8*int(i&(size-1)):][:8] }

func advance(used []byte, n uint16) {
	binary.LittleEndian.PutUint16(used[usedIdx:], binary.LittleEndian.Uint16(used[usedIdx:])+n)
}

// complete adds an entry.
func complete(used []byte, size uint16, id, length uint32) {
	e := element(used, size, binary.LittleEndian.Uint16(used[usedIdx:]))
	binary.LittleEndian.PutUint32(e, id)
	binary.LittleEndian.PutUint32(e[4:], length)
	advance(used, 1)
}

// taken returns a request that stands in the log as in flight.
func taken(log []byte, size uint16) (head uint16, ok bool) {
	for i := range size {
		if at := logEntries + logEntry*int(i); at < len(log) && log[at] == 1 {
			return i, true
		}
	}
	return 0, false
}

// lieFrom has the driver lie from now on, to all its clients.
func (h *Host) lieFrom(how string, clients map[uint64]*Mapping) {
	if strings.TrimPrefix(how, liePrefix) == defame {
		for id := range clients {
			h.Dead(id, "it was told to say so")
		}
		return
	}
	if l := lies[strings.TrimPrefix(how, liePrefix)]; l != nil {
		h.Say("told to misbehave: %s", how)
		h.lie, h.lieTo = l, clients
	}
}

// tellLies spoils every ring, if that is asked for.
func (h *Host) tellLies() {
	if h.lie == nil {
		return
	}
	for _, m := range h.lieTo {
		for _, r := range m.Rings {
			if used, err := r.Memory.Slice(r.Used, ring.UsedBytes(r.Size)); err == nil {
				h.lie(used, r.Log, r.Size)
			}
		}
	}
}
