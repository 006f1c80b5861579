// Package vhostuser speaks the vhost-user protocol (QEMU's docs/interop/vhost-user.rst, as of QEMU 7.2) over
// Unix stream sockets with SCM_RIGHTS: the control plane by which a front end (a VMM, a load generator) gives
// its queues and its memory to a back end.
//
// Frontend is the client's side. Backend is the server's side: a state machine which touches no ring itself,
// and calls a Handler with complete attachments. Everything that a peer sends is hostile: lengths, counts of
// descriptors, indices and addresses are checked before they are used, and an offence ends the session with an
// error.
//
// # Descriptors
//
// Whoever receives a descriptor from a socket closes it exactly once. Backend owns every descriptor that its
// peer sends; a Handler borrows them, and duplicates what it wants to keep. Frontend borrows every descriptor
// that its caller passes.
package vhostuser
