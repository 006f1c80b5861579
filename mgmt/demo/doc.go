// Command demo shows Grail at work as a user would see it, through grailctl alone: a personality VM hashes a file
// system through a block driver VM that is killed, made to fault and made to hang on the way. The hashes are then
// compared with those that the host computes. In the second part a Linux VM, whose root disk and network are served by driver VMs, builds SQLite and a
// program with it, runs that, and serves the result to the host over HTTP, while both drivers are crashed.
//
//	demo [-engine kvm|process] [-native] [-src DIR] [-v]
//
// It exits 0 only if every hash and checksum is right, every driver was replaced every time, and another tenant's VM was kept out.
package main
