package tenant

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Kind is what a node of the tree is.
type Kind string

// The kinds of node. Only the host and tenants have children.
const (
	Host   Kind = "host"
	Tenant Kind = "tenant"
	VM     Kind = "vm"
	Driver Kind = "driver"
	Own    Kind = "own" // what the host needs for itself
)

// String returns the kind as a message names it.
func (k Kind) String() string {
	switch k {
	case VM:
		return "VM"
	case Own:
		return "the host's own needs"
	}
	return string(k)
}

// Path names a tenant: the names from the host down, joined by slashes. The host's own is empty.
type Path string

// Bounds of paths.
const (
	maxName  = 32
	maxDepth = 8
)

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// Root is the host's path; a person may also write it as a slash.
const Root = Path("")

// ParsePath reads a tenant's path, such as acme/web.
func ParsePath(s string) (Path, error) {
	if s == "" || s == "/" {
		return Root, nil
	}
	names := strings.Split(s, "/")
	for _, n := range names {
		if len(n) > maxName || !nameForm.MatchString(n) {
			return "", fmt.Errorf("tenant %q is not valid; use 1 to %d letters, digits, dots, dashes and underscores, starting with a letter or digit, and a slash before a sub-tenant, such as acme/web", s, maxName)
		}
	}
	if len(names) > maxDepth {
		return "", fmt.Errorf("tenant %q is too deep; there can be %d names", s, maxDepth)
	}
	return Path(s), nil
}

// Parent returns the path above.
func (p Path) Parent() Path {
	i := strings.LastIndexByte(string(p), '/')
	return p[:max(i, 0)]
}

// Name returns the last name of the path.
func (p Path) Name() string { return string(p[strings.LastIndexByte(string(p), '/')+1:]) }

// Key names a node: its kind, and the path of a tenant or the name of a VM or driver.
type Key struct {
	Kind Kind
	Name string
}

// HostKey is the key of the tree's root.
var HostKey = Key{Kind: Host}

// Of returns the key of the tenant at p.
func Of(p Path) Key {
	if p == Root {
		return HostKey
	}
	return Key{Tenant, string(p)}
}

// String names the node in a message.
func (k Key) String() string {
	switch k.Kind {
	case Host:
		return "the host"
	case Own:
		return k.Kind.String()
	}
	return k.Kind.String() + " " + k.Name
}

// node is one domain.
type node struct {
	key      Key
	share    Share
	parent   *node
	children map[Key]*node
	live     bool
	held     map[Resource]int64 // the sum of what the children claim
}

// Tree is the domains of one host. It is not safe for concurrent use. The zero value is of no use; see New.
type Tree struct {
	nodes map[Key]*node
}

// Errors of a Tree; a share that cannot be kept is a *Refused.
var (
	ErrExists  = errors.New("exists already")
	ErrMissing = errors.New("does not exist")
	ErrInUse   = errors.New("is in use")
)

// New returns the tree of a host that owns capacity, of which own is what it needs for itself. Errors: *Refused if that is more than there is.
func New(capacity, own Share) (*Tree, error) {
	root := &node{key: HostKey, share: capacity, live: true}
	t := &Tree{nodes: map[Key]*node{HostKey: root}}
	return t, t.Add(Root, Key{Kind: Own}, own)
}

// Add makes a child of the tenant at parent. Errors: ErrExists; ErrMissing for the parent; *Refused.
func (t *Tree) Add(parent Path, key Key, share Share) error {
	p := t.nodes[Of(parent)]
	switch {
	case p == nil:
		return fmt.Errorf("%v %w", Of(parent), ErrMissing)
	case t.nodes[key] != nil:
		return fmt.Errorf("%v %w", key, ErrExists)
	case key.Kind == Tenant && Path(key.Name).Parent() != parent:
		return fmt.Errorf("%v is no child of %v", key, p.key)
	}
	n := &node{key: key, parent: p}
	t.nodes[key] = n
	if p.children == nil {
		p.children = map[Key]*node{}
	}
	p.children[key] = n
	if err := t.become(n, share); err != nil {
		delete(p.children, key)
		delete(t.nodes, key)
		return err
	}
	return nil
}

// Set changes what a node owns. Errors: ErrMissing; *Refused, after which nothing has changed.
func (t *Tree) Set(key Key, share Share) error {
	n := t.nodes[key]
	if n == nil {
		return fmt.Errorf("%v %w", key, ErrMissing)
	}
	return t.become(n, share)
}

// Remove takes a node out of the tree. Errors: ErrMissing; ErrInUse while it has children.
func (t *Tree) Remove(key Key) error {
	n := t.nodes[key]
	switch {
	case n == nil || n.parent == nil:
		return fmt.Errorf("%v %w", key, ErrMissing)
	case len(n.children) > 0:
		return fmt.Errorf("%v %w by %s", key, ErrInUse, names(slices.Collect(maps.Keys(n.children))))
	}
	n.replace(Share{}) // less is never refused
	delete(n.parent.children, key)
	delete(t.nodes, key)
	return nil
}

// SetLive notes whether something in a VM or driver runs. It reports whether that is a change, and does nothing if the node is not there.
func (t *Tree) SetLive(key Key, live bool) bool {
	n := t.nodes[key]
	if n == nil || n.live == live {
		return false
	}
	n.live = live
	return true
}

// Share returns what a node owns.
func (t *Tree) Share(key Key) (Share, bool) {
	if n := t.nodes[key]; n != nil {
		return n.share, true
	}
	return Share{}, false
}

// Parent returns the path of the tenant that a node belongs to.
func (t *Tree) Parent(key Key) Path {
	if n := t.nodes[key]; n != nil && n.parent != nil {
		return Path(n.parent.key.Name)
	}
	return Root
}

// Children returns the keys of a node's children, ordered: tenants, then the others, each by name.
func (t *Tree) Children(key Key) []Key {
	if n := t.nodes[key]; n != nil {
		return sortedKeys(n.children)
	}
	return nil
}

// All returns every node after its parent.
func (t *Tree) All() iter.Seq[Key] {
	return func(yield func(Key) bool) {
		var walk func(n *node) bool
		walk = func(n *node) bool {
			if !yield(n.key) {
				return false
			}
			for _, k := range sortedKeys(n.children) {
				if !walk(n.children[k]) {
					return false
				}
			}
			return true
		}
		walk(t.nodes[HostKey])
	}
}

// Held returns how much of a resource the children of a node claim together.
func (t *Tree) Held(key Key, r Resource) int64 {
	if n := t.nodes[key]; n != nil {
		return n.held[r]
	}
	return 0
}

func sortedKeys(m map[Key]*node) []Key {
	rank := map[Kind]int{Own: 1, Tenant: 2, Driver: 3, VM: 4}
	return slices.SortedFunc(maps.Keys(m), func(a, b Key) int {
		if c := rank[a.Kind] - rank[b.Kind]; c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
}

func names(keys []Key) string {
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.String(), b.String()) })
	const most = 5
	var list []string
	for _, k := range keys[:min(len(keys), most)] {
		list = append(list, k.String())
	}
	if n := len(keys) - most; n > 0 {
		list = append(list, fmt.Sprintf("%d more", n))
	}
	return strings.Join(list, ", ")
}

// HeldAll returns how much of each resource the children of a node claim together.
func (t *Tree) HeldAll(key Key) map[string]int64 {
	n := t.nodes[key]
	if n == nil || len(n.held) == 0 {
		return nil
	}
	m := map[string]int64{}
	for r, amount := range n.held {
		m[string(r)] = amount
	}
	return m
}
