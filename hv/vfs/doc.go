// Package vfs serves the part of a native guest's system calls that is about descriptors, paths and Grail
// capabilities, for every engine: a fixed subset of Linux's calls (amd64 numbers and structures) and Grail's own.
//
// A guest sees a read-only root made from a tar archive, a private in-memory /tmp, a handful of devices, its
// console, pipes, eventfds and epoll instances, and the capabilities in its table. No host path is ever opened:
// whatever the table needs it was given as a descriptor before the jail closed.
//
// Every number, pointer and length comes from a hostile guest: it is copied once, bounded, then used. The
// only place where a guest thread waits is Waiter.Poll, so that the engine can interrupt it; device and file
// descriptors of the host may block in the kernel for as long as the device takes.
package vfs
