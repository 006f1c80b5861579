// Package ring implements virtio's split virtqueues in shared memory, both sides, and what belongs around
// them: bounded access to a peer's memory, doorbells, an adaptive poller, and vhost-user's in-flight log.
//
// A queue connects a driver, which offers buffers, with a device, which uses them (virtio 1.2 §2.7 Split
// Virtqueues). Type Driver is the one side, type Device the other. Neither trusts the other: each keeps its
// own indices in private memory, publishes them, loads the peer's once, bounds them, and then uses them. A
// violation is a typed error and is final: the queue stays dead, nothing panics, and nothing outside the
// granted memory is touched.
//
// # Ownership
//
// A Driver, a Device, an Inflight, a Chain and a Poller each belong to one goroutine at a time and hold no
// lock. A Memory is immutable and may be shared freely. A Doorbell may be rung from anywhere.
//
// # Allocation
//
// Constructors allocate. Driver.Add, Publish and Used, Device.Push, Publish and Pop (once a Chain has grown
// to the longest chain it has seen), Inflight's log steps, Doorbell.Ring and Drain, and Poller.Wait do not.
//
// # Memory order
//
// Ring indices are 16 bits wide, for which Go has no atomics. The few lines of assembly in atomic_amd64.s
// and atomic_arm64.s supply load-acquire, store-release and a full fence; each use names its pair. All wire
// values are little-endian.
package ring
