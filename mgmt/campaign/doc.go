// Command campaign crashes a block driver VM again and again, at random moments and in random ways, under a VM that
// writes to the driver's disk and verifies what it reads. No request may fail, and nothing that was acknowledged as
// durable may be missing in the end.
//
// With -linux the clients are Linux VMs: fio verifies a disk while its block driver is crashed, and iperf3 sends through a net driver that is.
//
//	campaign [-linux] [-crashes N] [-engine kvm|process] [-seed N]
package main
