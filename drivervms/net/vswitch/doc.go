// Package vswitch is the net driver VM's work without the VM: a virtual switch between the virtio-net queues of
// many clients and one uplink. The driver VM's program joins it with the grail system calls; tests join it with
// memory and sockets of their own.
//
// # What it guarantees
//
// A port belongs to a tenant. Frames go to ports of the same tenant and to the uplink, never to another tenant's
// port, neither directly nor by its address behind the uplink. Unless it is told otherwise a port is pinned: it may
// send only with its own MAC address and IP addresses, and may not play DHCP server or IPv6 router. What the switch
// drops is counted by reason at the port that caused it, or, when the receiver was the cause, at the receiver.
//
// The headers of a frame are copied to private memory, checked there, and delivered from there: a client that changes
// them meanwhile changes nothing. The rest goes from the sender's buffers straight to the receiver's, once.
//
// # Restart
//
// One goroutine owns a Switch. It uses buffers strictly in the order in which they were offered, and shows received
// frames to their receivers before it gives the sender's buffers back. So the used index of a ring says
// where to go on: a successor needs no log, and repeats at most the frames of one round.
package vswitch
