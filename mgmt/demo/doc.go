// Command demo shows Grail at work as a user would see it, through grailctl alone: a personality VM hashes a file
// system through a block driver VM that is killed, made to fault and made to hang on the way. The hashes are then
// compared with those that the host computes.
//
//	demo [-engine kvm|process] [-src DIR] [-v]
//
// It exits 0 only if every hash is right and the driver was replaced every time.
package main
