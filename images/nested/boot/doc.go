// Command boot tests Grail's native engine where there is a true AMD SVM: inside a machine that QEMU emulates. It
// runs on any x86-64 or other host, with or without /dev/kvm.
//
// It takes a Debian or Ubuntu kernel from its package (nothing is installed), compiles Grail's programs and tests,
// packs them into an initial file system whose first process is images/nested/init, starts QEMU, and reports what
// came of each step. Everything it makes lies in build/nested; the kernel is fetched once.
package main
