// Package amd64 holds what Grail must know of the x86-64 architecture and of Linux's conventions on it: page
// tables, descriptor tables, the trap stub that is the only guest code in kernel mode, the vDSO, signal
// frames and the initial CPU state. It builds bytes and numbers; it runs nothing.
package amd64
