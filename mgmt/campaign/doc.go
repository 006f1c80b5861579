// Command campaign brings about faults of every kind, one after the other in several small Grails at a time, and finds out what became of each.
//
//	campaign [-quick | -faults N -time D] [-rigs N] [-seed N | -one SEED] [-kinds A,B] [-engine kvm|process] [-o FILE]
//	campaign -crashes N [-engine kvm|process] [-seed N]
//	campaign -linux [-crashes N] [-seed N]
//
// A fault is one of a list of kinds: a driver VM crashes, hangs, stalls, lies, or has its memory flipped; its process, its spare, its client or graild is
// killed; it is upgraded. In one case of five another one follows during its recovery. All that is random about a fault follows from its seed, which
// -one repeats; what follows from the host's scheduling does not. -seed repeats a campaign.
//
// Each fault happens in a rig: a Grail of its own with a block driver, a switch and a console driver, clients that check every byte, and a
// VM with a driver of its own that has nothing to do with any fault. Its end is a verdict:
//
//	recovered  nobody noticed more than a pause, all data are right, and the driver serves again
//	degraded   as was promised: a client was told an error that the host's device gave; an upgrade that met another fault was refused
//	SILENT     a driver whose own memory was flipped lied, and nobody could know; of flip:* only
//	LOST       data lost, stale, misplaced, torn or changed; an error that was not promised; a VM harmed that had nothing to do with it;
//	           the VMM or graild crashed by itself; a driver that does not serve in time
//
// After SILENT and LOST the rig is made anew, and what may tell why is kept in build/campaign. The exit code is 1 if anything is LOST.
//
// With -crashes, one block driver VM is crashed again and again, at random moments and in random ways, under a VM that writes to its disk and
// verifies what it reads; with -linux the clients are Linux VMs: fio verifies a disk while its block driver is crashed, and iperf3 sends through
// a net driver that is. No request may fail, and nothing that was acknowledged as durable may be missing in the end.
package main
