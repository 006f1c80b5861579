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
// guarantee to itself only when it does run, and no claim to the rest. What a VM gives a driver of its guarantee is the driver's while both run.
func (t *Tree) Entitlements() []Entitled {
	var list []Entitled
	root := t.nodes[HostKey]
	live := map[*node]bool{}
	root.spreadLive(live)
	funds := t.funds()
	var down func(n *node, has, limit Milli, set []int)
	down = func(n *node, has, limit Milli, set []int) {
		keys := sortedKeys(n.children)
		due := divide(n, keys, has, live, funds, nil)
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

// Divide returns what is due to each child of a node in which something runs, when they have so much together. demand has those that want no more
// than an amount, which then goes to the others.
func (t *Tree) Divide(key Key, has Milli, demand map[Key]Milli) map[Key]Milli {
	n := t.nodes[key]
	if n == nil {
		return nil
	}
	live := map[*node]bool{}
	n.spreadLive(live)
	keys := sortedKeys(n.children)
	due := map[Key]Milli{}
	for i, d := range divide(n, keys, has, live, t.funds(), demand) {
		if live[n.children[keys[i]]] {
			due[keys[i]] = d
		}
	}
	return due
}

// funds returns what nodes are guaranteed beyond what they own, and where it is negative less, since VMs that run work for drivers that run with part of
// their guarantees: below the node that is above both, each on the way to the driver has more and each on the way to the VM less.
func (t *Tree) funds() map[*node]Milli {
	funds := map[*node]Milli{}
	for key, n := range t.nodes {
		if key.Kind != VM || !n.live {
			continue
		}
		for name, dev := range n.share.Devices {
			driver := t.nodes[Key{Driver, name}]
			if dev.CPU == 0 || driver == nil || !driver.live {
				continue
			}
			// What is above both is raised and lowered.
			for up := n; up != nil; up = up.parent {
				funds[up] -= dev.CPU
			}
			for up := driver; up != nil; up = up.parent {
				funds[up] += dev.CPU
			}
		}
	}
	return funds
}

// bounds returns what a child is guaranteed and the most that it gets, 0 for no bound, when it wants no more than demand says.
func (n *node) bounds(funds map[*node]Milli, demand map[Key]Milli) (claim, limit Milli) {
	claim, limit = max(Milli(n.claim(CPUTime))+funds[n], 0), n.share.CPU.Cap
	if limit > 0 {
		claim = min(claim, limit) // a driver's cap is also one of what it is given
	}
	if d, ok := demand[n.key]; ok {
		d = max(d, 1) // 0 would be no bound
		claim, limit = min(claim, d), tighter(limit, d)
	}
	return claim, limit
}

// divide returns what is due to each child of a node that has so much.
func divide(n *node, keys []Key, has Milli, live map[*node]bool, funds map[*node]Milli, demand map[Key]Milli) []Milli {
	due, limits := make([]Milli, len(keys)), make([]Milli, len(keys))
	open := make([]int, 0, len(keys)) // those that take part in what is left
	left := has
	for i, k := range keys {
		c := n.children[k]
		due[i], limits[i] = c.bounds(funds, demand)
		if live[c] {
			left -= due[i]
			open = append(open, i)
		}
	}
	if left < 0 {
		// There is less than was admitted: the host itself takes more than it said. All lose alike.
		for _, i := range open {
			due[i] = part(due[i], int64(has), int64(has-left))
		}
	}
	// A child at its limit leaves the rest to the others: at most one round for each.
	for left > 0 && len(open) > 0 {
		var weights int64
		for _, i := range open {
			weights += weight(n.children[keys[i]].share.CPU.Weight)
		}
		given, full := Milli(0), false
		parts := make([]Milli, len(open))
		for j, i := range open {
			parts[j] = part(left, weight(n.children[keys[i]].share.CPU.Weight), weights)
			if limits[i] > 0 && due[i]+parts[j] >= limits[i] {
				full = true
			}
		}
		for j, i := range open {
			if full && (limits[i] == 0 || due[i]+parts[j] < limits[i]) {
				continue // first those that reach their limit: what they leave makes the others' part larger
			}
			if limits[i] > 0 {
				parts[j] = min(parts[j], limits[i]-due[i])
			}
			due[i] += parts[j]
			given += parts[j]
		}
		left -= given
		if !full {
			break
		}
		open = slices.DeleteFunc(open, func(i int) bool { return limits[i] > 0 && due[i] >= limits[i] })
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
