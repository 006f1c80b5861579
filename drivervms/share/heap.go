package share

// heap holds nodes by the time at which their turn comes, the first one in front. A node is in each kind of heap at most once.
type heap struct {
	kind  int // index of node.at and node.pos
	nodes []*node
}

// The kinds.
const (
	capHeap = iota
	guaranteeHeap
)

func (h *heap) less(i, k int) bool { return h.nodes[i].at[h.kind] < h.nodes[k].at[h.kind] }

func (h *heap) swap(i, k int) {
	h.nodes[i], h.nodes[k] = h.nodes[k], h.nodes[i]
	h.nodes[i].pos[h.kind], h.nodes[k].pos[h.kind] = i+1, k+1
}

// put adds n, or moves it if it is there.
func (h *heap) put(n *node, at int64) {
	n.at[h.kind] = at
	if n.pos[h.kind] == 0 {
		h.nodes = append(h.nodes, n)
		n.pos[h.kind] = len(h.nodes)
	}
	h.fix(n.pos[h.kind] - 1)
}

// drop removes n, if it is there.
func (h *heap) drop(n *node) {
	i := n.pos[h.kind] - 1
	if i < 0 {
		return
	}
	last := len(h.nodes) - 1
	h.swap(i, last)
	n.pos[h.kind] = 0
	h.nodes[last] = nil
	if h.nodes = h.nodes[:last]; i < last {
		h.fix(i)
	}
}

// first returns the node whose turn comes first, or nil.
func (h *heap) first() *node {
	if len(h.nodes) == 0 {
		return nil
	}
	return h.nodes[0]
}

// fix restores the order after node i has changed.
func (h *heap) fix(i int) {
	for i > 0 && h.less(i, (i-1)/2) {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		k := 2*i + 1
		if k+1 < len(h.nodes) && h.less(k+1, k) {
			k++
		}
		if k >= len(h.nodes) || !h.less(k, i) {
			return
		}
		h.swap(i, k)
		i = k
	}
}
