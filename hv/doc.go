// Package hv is Grail's microkernel on the host side: the objects that VMs are made of (memory, doorbells,
// attachments), the specification from which grailvm runs one VM, and the control protocol by which policy
// (graild) speaks with it. It is mechanism only; what should run, and what happens after a crash, is decided in
// mgmt.
package hv
