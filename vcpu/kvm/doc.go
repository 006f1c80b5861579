// Package kvm runs guest user-mode code on virtual CPUs of /dev/kvm. The guest has no kernel: a trap stub
// (arch/amd64) leaves the VM on every system call and exception, and the caller serves them.
//
// The package works alike on hardware virtualization and on a software KVM that runs only user mode at
// speed: there SYSCALL enters the stub still at CPL 3, kernel mode is interpreted and some of its instructions
// (SYSRET, IRET) do not exist. Return to user mode therefore sets the CPU's registers from outside, except
// after a system call that entered kernel mode proper, where the stub's own SYSRET is cheaper.
//
// All files are for amd64; the other architectures' twins keep the file names.
package kvm
