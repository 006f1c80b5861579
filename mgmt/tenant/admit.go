package tenant

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// owned returns how much of a resource the node was given.
func (n *node) owned(r Resource) int64 {
	for a := range n.share.amounts() {
		if a.of == r {
			return a.n
		}
	}
	return 0
}

// claim returns how much of a resource the node takes from its parent: what it was given or, where that is no limit, what its children take.
func (n *node) claim(r Resource) int64 {
	if own := n.owned(r); own > 0 || !r.counted() {
		return own
	}
	return n.held[r]
}

// limited reports whether the node's children may not claim any amount of the resource.
func (n *node) limited(r Resource) bool { return !r.counted() || n.owned(r) > 0 }

// replace gives the node another share and brings the sums above it up to date.
func (n *node) replace(share Share) {
	touched := map[Resource]bool{}
	for _, s := range []*Share{&n.share, &share} {
		for a := range s.amounts() {
			touched[a.of] = true
		}
	}
	before := map[Resource]int64{}
	for r := range touched {
		before[r] = n.claim(r)
	}
	n.share = share
	for r := range touched {
		n.parent.addHeld(r, n.claim(r)-before[r])
	}
}

// addHeld adds to what the children of n claim.
func (n *node) addHeld(r Resource, delta int64) {
	if n == nil || delta == 0 {
		return
	}
	before := n.claim(r)
	if n.held == nil {
		n.held = map[Resource]int64{}
	}
	if n.held[r] += delta; n.held[r] == 0 {
		delete(n.held, r)
	}
	n.parent.addHeld(r, n.claim(r)-before)
}

// become gives n another share if every sum that it is part of still holds.
func (t *Tree) become(n *node, share Share) error {
	before := n.share
	asked := map[Resource]bool{}
	for _, s := range []*Share{&before, &share} {
		for a := range s.amounts() {
			asked[a.of] = true
		}
	}
	n.replace(share)
	for _, r := range slices.SortedFunc(maps.Keys(asked), compare) {
		for at := n; at != nil; at = at.parent {
			if !at.limited(r) || at.held[r] <= at.owned(r) {
				continue
			}
			n.replace(before)
			return refuse(n, at, r, &share)
		}
	}
	return nil
}

// Holder is one who holds part of what was asked for.
type Holder struct {
	Key    Key   `json:"key"`
	Amount int64 `json:"amount"`
}

// Refused says that a share cannot be kept, with the sum.
type Refused struct {
	Resource Resource
	Who      Key      // asked
	Asked    int64    // by Who; if Who is At, what it is to own from now on
	At       Key      // the node whose sum does not hold
	Owned    int64    // by At
	Held     int64    // by others than Who below At
	Holders  []Holder // the others, those with most first
}

// Free returns how much of the resource there is for Who at the node.
func (e *Refused) Free() int64 { return max(e.Owned-e.Held, 0) }

// maxHolders is how many holders a message names.
const maxHolders = 5

// Error implements error.
func (e *Refused) Error() string {
	f := e.Resource.Format
	var rest []string
	for _, h := range e.Holders[:min(len(e.Holders), maxHolders)] {
		rest = append(rest, fmt.Sprintf("%v %s", h.Key, f(h.Amount)))
	}
	if n := len(e.Holders) - maxHolders; n > 0 {
		var sum int64
		for _, h := range e.Holders[maxHolders:] {
			sum += h.Amount
		}
		rest = append(rest, fmt.Sprintf("%d others %s", n, f(sum)))
	}
	held := "nobody holds any of it"
	if len(rest) > 0 {
		held = "held by " + strings.Join(rest, ", ")
	}
	asked := f(e.Asked)
	if what := e.Resource.what(); what != "" {
		asked = what + " of " + asked
	}
	if e.Who == e.At {
		return fmt.Sprintf("%v cannot be set to %s: %s of it is in use, %s", e.Who, asked, f(e.Held), held)
	}
	return fmt.Sprintf("%v asks for %s, but %v has %s free of %s: %s", e.Who, asked, e.At, f(e.Free()), f(e.Owned), held)
}

// refuse describes that the sum at a node does not hold if n gets a share. n has the one before.
func refuse(n, at *node, r Resource, share *Share) *Refused {
	e := &Refused{Resource: r, Who: n.key, At: at.key, Owned: at.owned(r), Held: at.held[r]}
	asking := node{share: *share, held: n.held}
	e.Asked = asking.claim(r)
	if n == at {
		e.Asked, e.Owned = asking.owned(r), asking.owned(r)
	} else {
		e.Held -= n.claim(r)
	}
	for _, c := range at.children {
		amount := c.claim(r)
		for up := n; up != nil; up = up.parent {
			if up == c {
				amount -= n.claim(r)
			}
		}
		if amount > 0 {
			e.Holders = append(e.Holders, Holder{c.key, amount})
		}
	}
	slices.SortFunc(e.Holders, func(a, b Holder) int {
		if a.Amount != b.Amount {
			return cmp.Compare(b.Amount, a.Amount)
		}
		return strings.Compare(a.Key.String(), b.Key.String())
	})
	return e
}
