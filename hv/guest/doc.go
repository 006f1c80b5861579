// Package guest is the library that programs inside a Grail VM link: personalities to work on their disks,
// driver VMs to serve theirs. Everything in it is built on the calls that docs/abi.md lists, so a program in
// another language can do the same.
//
// A personality opens a disk with OpenDisk and uses it as an io.ReaderAt and io.WriterAt, from any number
// of goroutines. A request waits as long as it takes: while the driver VM beneath is being replaced, the
// program sees a stall and no error.
//
// A driver uses Channel (its control channel), Status (its heartbeat), MapGrant and DevIO.
//
// Outside a Grail VM every entry point returns ErrOutside.
package guest
