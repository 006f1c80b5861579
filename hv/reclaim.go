package hv

// Reclaim is an order to a VM to use at most Bytes of its memory from now on. The guest is told to keep Target, which leaves it some room to live in. It has WithinMs to get there; if it
// is beyond Bytes then, the rest is taken by force. A later order takes the place of one that is under way; one for all of the VM's memory ends all bounds.
type Reclaim struct {
	Bytes    uint64 `json:"bytes"`
	Target   uint64 `json:"target,omitempty"` // 0: Bytes without Headroom
	WithinMs int64  `json:"withinMs"`         // at most MaxReclaimMs
}

// Headroom is by how many bytes a guest with a bound is to stay below it: programs use a little more or less all the time, and one that is beyond its bound ends.
func Headroom(bound uint64) uint64 { return min(max(bound/16, 4<<20), bound/4) &^ 4095 }

// Resolve returns the bound and the target for a guest with that much memory, of which some is reserved.
func (r *Reclaim) Resolve(size, reserved uint64) (bound, target uint64) {
	bound = min(max(r.Bytes&^4095, reserved), size)
	if bound == size {
		return size, size
	}
	target = r.Target
	if target == 0 {
		target = bound - Headroom(bound)
	}
	return bound, min(max(target, reserved), bound)
}

// MaxReclaimMs bounds Reclaim.WithinMs.
const MaxReclaimMs = 10 * 60 * 1000

// Reclaimed says what came of a Reclaim. Amounts are in bytes.
type Reclaimed struct {
	Bound      uint64  `json:"bound"`  // that holds now: never less than what is reserved
	Before     uint64  `json:"before"` // used when the order was given
	Target     uint64  `json:"target"` // that the guest was told to keep
	Given      uint64  `json:"given"`  // by the guest
	Taken      uint64  `json:"taken"`  // by force
	After      uint64  `json:"after"`  // used now
	Ms         float64 `json:"ms"`     // from the order to its end
	Told       bool    `json:"told"`   // the guest was waiting for orders
	Superseded bool    `json:"superseded,omitempty"`
	Ended      bool    `json:"ended,omitempty"` // what could be taken was not enough: the VM ends
}

// Stands takes note of what is used when the guest's time is over. What it frees without being asked is not given.
func (r *Reclaimed) Stands(used uint64) {
	r.After = used
	if r.Before > r.Target {
		r.Given = r.Before - min(r.Before, used)
	}
}

// MemoryState is where a VM's memory stands, in bytes.
type MemoryState struct {
	Reserved   uint64 `json:"reserved,omitempty"`   // never asked for
	Prefaulted uint64 `json:"prefaulted,omitempty"` // of it, has host memory
	Bound      uint64 `json:"bound,omitempty"`      // that holds, or will at the end of the present order; 0: only the VM's own memory
	Used       uint64 `json:"used,omitempty"`
	Orders     uint64 `json:"orders,omitempty"`
	Given      uint64 `json:"given,omitempty"` // by the guest when it was asked, in all
	Taken      uint64 `json:"taken,omitempty"` // by force, in all
	Pending    bool   `json:"pending,omitempty"`
	// Note says what of the reservation the engine cannot do.
	Note string `json:"note,omitempty"`
}
