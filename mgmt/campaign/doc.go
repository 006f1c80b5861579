// Command campaign crashes a block driver VM again and again, at random moments and in random ways, under a VM that
// writes to the driver's disk and verifies what it reads. No request may fail, and nothing that was acknowledged as
// durable may be missing in the end.
//
//	campaign [-crashes N] [-engine kvm|process] [-seed N]
package main
