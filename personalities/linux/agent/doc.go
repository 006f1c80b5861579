// Package agent is what a host and the agent in a Linux guest (agent/init) say to each other, and the host's side of it.
//
// They share a byte stream, a virtio-serial port named PortName (virtio 1.2 §5.3 Console Device). Frames on it are bounded and carry a checksum, so that
// a host that died in the middle of one leaves nothing behind: the next host says hello with a number of its own, the guest looks for
// that hello in whatever it finds, and the host skips everything up to the answer with its number.
//
// Programs run by Exec share the stream. Each of their streams has a window of Window bytes that its reader renews as it reads:
// a slow reader stops its own program and nobody else's.
//
// Neither side trusts the other to keep to this: lengths are checked before memory is taken, windows are enforced, text is
// made printable before it becomes part of an error.
package agent
