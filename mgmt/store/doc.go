// Package store keeps what graild must know after it was killed: the VMs and drivers that should exist, which
// processes run them, and the crash records. It is one bbolt file; writes are made in the order they were asked
// for, several in one transaction when they come together.
package store
