// Package logring is a ring in shared memory for text that may be lost but must never hold up whoever writes it: a console. One producer, one
// consumer, neither of which trusts the other.
//
// The producer writes a stream of bytes over the oldest ones, whether or not they were read: so the newest bytes are always there, for as long as the
// memory is, also when producer or consumer have ended. It reads one word that the consumer wrote, a hint that it sleeps. The consumer
// counts what it missed. A virtqueue would not do: its producer would have to wait for buffers, or keep and count a backlog of its own, which ended with it.
package logring
