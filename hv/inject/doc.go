// Package inject makes faults in a VM on purpose: it is how a person or a test sees that nobody else is harmed. It holds the orders that graild gives on
// the control socket (hv.OpInject) and what is armed: faults that strike at the next occasions. The layers that an armed fault strikes ask
// a Set, which costs one load of a pointer where nothing is armed, and only where a system call is served anyway.
//
// Mechanism only: what is injected when, and all that is random about it, follows from the order and its seed.
package inject
