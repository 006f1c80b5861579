// Package blk is the host side of the block driver VM: what a device offers to a client, as a virtio
// configuration space and feature bits, and the checks of what a client negotiated. The driver VM's program is
// drivervms/blk/guest; what it does is in drivervms/blk/serve.
package blk
