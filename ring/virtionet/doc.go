// Package virtionet holds the wire format of a virtio network device (virtio 1.2 §5.1 Network Device): numbers,
// the configuration space, and the header before each frame, with the checks that a device makes of a
// driver's headers. Drivers, devices and tests share it; it does no I/O.
package virtionet
