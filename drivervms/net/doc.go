// Package net is the host side of the net driver VM: what a port offers to a client, as a virtio configuration space,
// feature bits and a native grant, the checks of what a client negotiated, and the messages that configure the switch.
// The driver VM's program is drivervms/net/guest; what it does is in drivervms/net/vswitch.
package net
