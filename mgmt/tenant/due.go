package tenant

import (
	"math/big"
	"slices"
)

// Entitled is a node's part of the processors while everybody who runs wants more.
type Entitled struct {
	Key    Key
	Parent Key
	Milli  Milli // what is due to it
	Cap    Milli // the tightest cap from the host down to it; 0: none
	Set    []int // the processors it may run on; nil: all
	Live   bool  // something in it runs
}

// Entitlements returns every node below the host, after its parent, with what is due to it: first what it is guaranteed; then the siblings'
// weights divide what their parent has and nobody who runs is guaranteed, up to each one's cap. A sibling in which nothing runs has its
// guarantee to itself only when it does run, and no claim to the rest.
func (t *Tree) Entitlements() []Entitled {
	var list []Entitled
	root := t.nodes[HostKey]
	live := map[*node]bool{}
	root.spreadLive(live)
	var down func(n *node, has, limit Milli, set []int)
	down = func(n *node, has, limit Milli, set []int) {
		keys := sortedKeys(n.children)
		due := divide(n, keys, has, live)
		for i, k := range keys {
			c := n.children[k]
			e := Entitled{Key: k, Parent: n.key, Milli: due[i], Cap: tighter(limit, c.share.CPU.Cap), Set: narrower(set, c.share.CPU.Set), Live: live[c]}
			list = append(list, e)
			down(c, due[i], e.Cap, e.Set)
		}
	}
	down(root, Milli(root.owned(CPUTime)), root.share.CPU.Cap, narrower(nil, root.share.CPU.Set))
	return list
}

// spreadLive notes the nodes in which something runs.
func (n *node) spreadLive(live map[*node]bool) bool {
	is := n.live && n.parent != nil
	for _, c := range n.children {
		if c.spreadLive(live) {
			is = true
		}
	}
	live[n] = is
	return is
}

// divide returns what is due to each child of a node that has so much.
func divide(n *node, keys []Key, has Milli, live map[*node]bool) []Milli {
	due := make([]Milli, len(keys))
	open := make([]int, 0, len(keys)) // those that take part in what is left
	left := has
	for i, k := range keys {
		c := n.children[k]
		due[i] = Milli(c.claim(CPUTime))
		if live[c] {
			left -= due[i]
			open = append(open, i)
		}
	}
	// A child at its cap leaves the rest to the others: at most one round for each.
	for left > 0 && len(open) > 0 {
		var weights int64
		for _, i := range open {
			weights += weight(n.children[keys[i]].share.CPU.Weight)
		}
		given, full := Milli(0), false
		parts := make([]Milli, len(open))
		for j, i := range open {
			c := n.children[keys[i]]
			parts[j] = part(left, weight(c.share.CPU.Weight), weights)
			if limit := c.share.CPU.Cap; limit > 0 && due[i]+parts[j] >= limit {
				full = true
			}
		}
		for j, i := range open {
			limit := n.children[keys[i]].share.CPU.Cap
			if full && (limit == 0 || due[i]+parts[j] < limit) {
				continue // first those that reach their cap: what they leave makes the others' part larger
			}
			if limit > 0 {
				parts[j] = min(parts[j], limit-due[i])
			}
			due[i] += parts[j]
			given += parts[j]
		}
		left -= given
		if !full {
			break
		}
		open = slices.DeleteFunc(open, func(i int) bool {
			limit := n.children[keys[i]].share.CPU.Cap
			return limit > 0 && due[i] >= limit
		})
	}
	return due
}

// part returns has*w/sum.
func part(has Milli, w, sum int64) Milli {
	x := new(big.Int).Mul(big.NewInt(int64(has)), big.NewInt(w))
	return Milli(x.Div(x, big.NewInt(sum)).Int64())
}

// tighter returns the lower of two caps, where 0 is none.
func tighter(a, b Milli) Milli {
	switch {
	case a == 0:
		return b
	case b == 0:
		return a
	}
	return min(a, b)
}

// narrower returns the processors of a set that the parent has too; if there are none, the parent's.
func narrower(parent []int, set string) []int {
	if set == "" {
		return parent
	}
	own, err := ParseSet(set)
	if err != nil {
		return parent
	}
	if parent == nil {
		return own
	}
	var both []int
	for _, p := range own {
		if slices.Contains(parent, p) {
			both = append(both, p)
		}
	}
	if both == nil {
		return parent
	}
	return both
}
