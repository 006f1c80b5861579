// Package abi holds the numbers and structures that Grail guests and their host share: the Grail system
// calls, the capability table, batched device requests, the layout of a disk grant and the messages of a
// driver's control channel. Everything else that a native guest sees is a subset of Linux's system-call
// interface for its architecture; docs/abi.md lists it.
//
// All structures are little-endian and naturally aligned, so that C and Rust guests can mirror them.
package abi
