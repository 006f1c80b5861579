// Package sys runs one native guest on engine kvm: it loads a static ELF program, gives every guest thread a vCPU
// and a host thread, and serves a fixed subset of Linux's system calls. Threads, futexes, signals, memory and
// time are served here; descriptors, paths and capabilities by hv/vfs. Every other call answers ENOSYS and is
// counted.
//
// docs/abi.md lists the subset. The guest is hostile: each argument is read once and bounded, and what the
// guest cannot repair ends this guest alone, with a reason.
package sys
