// Package virtioblk holds the wire format of a virtio block device (virtio 1.2 §5.2 Block Device): numbers,
// the configuration space, request headers, and the split of a chain into header, data and status. Drivers,
// devices and tests share it; it does no I/O.
package virtioblk
