// Package usernet is the far end of a switch's uplink in user mode: a network stack (gVisor's) that takes the guests' TCP, UDP and echo
// requests and carries them on through ordinary sockets of the host's, and that brings connections to published ports to the
// guests. It needs no privileges. The program around it is drivervms/net/grailnat.
//
// What guests send is hostile: frames are bounded before the stack sees them, where they may go is decided by NAT.target alone,
// and each guest has a bounded share of flows. Nothing of it outlives the process: the next one starts without
// connections, and guests learn of that by resets.
package usernet
