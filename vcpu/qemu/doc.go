// Package qemu is the engine that runs whole machines: stock kernels of this and other architectures, with hardware
// KVM where there is one and by translation (TCG) otherwise. It starts QEMU in a jail, talks QMP with it, and
// connects its virtio disks and network cards to Grail's driver VMs by vhost-user.
//
// # Machines
//
// On amd64 the machine is microvm with PCIe: with Debian's cloud kernel 6.1 under TCG on a 2-core virtual machine, a
// guest with 4 free slots, a serial console and an agent's channel answers 3.0 s after Start (2 runs), against 3.3 s
// on q35 without its SATA, SMBus and VM port. With QEMU's defaults for the rest, init runs after 2.6 s on microvm,
// 3.4 s on pc and 3.9 s on q35 (one run each). Two facts of microvm are made up for on the kernel's command line:
//
//   - It has no timer interrupt but the local APIC's, which Linux sets up after it has measured the TSC against the
//     PIT. On a busy host that measurement fails and the kernel waits for a tick for ever. "tsc_early_khz=" spares it
//     the measurement: QEMU's translator passes the host's TSC through, whose rate this package measures. A hardware
//     KVM tells the guest the rate (kvm-clock).
//   - Its firmware tables do not hand PCIe hot-plug over to Linux. "pcie_ports=native" makes Linux take it.
//
// Where the rate is not known (TCG on a host that is not amd64) the machine is q35. On arm64 it is virt.
//
// Every disk and network card has a PCIe root port of its own, and a few ports are free, so that each can be plugged
// and unplugged while the machine runs. With native hot-plug, Linux waits 5 seconds between the request to unplug and
// its consent; a guest that is told otherwise may write 0 to /sys/bus/pci/slots/N/power, which has the same effect
// within 1.1 seconds. (N is 1 for the first disk or card.) On q35, where hot-plug goes through ACPI, it takes 0.1 s.
//
// Guests need the modules virtio_pci, virtio_blk, virtio_net, virtio_console, virtio_balloon to give memory back, and pvpanic-pci to tell of a panic. A
// guest without the last that reboots on a panic ends with cause Reset.
//
// # Back ends
//
// QEMU waits for a vhost-user server while a device is plugged, and with it the whole machine: a server that accepts
// a connection and says nothing holds up AddDisk or AddNIC until their deadline and the machine for as long as it is
// silent. A server that goes away is looked for once a second, at the same path; requests wait meanwhile.
//
// # The jail
//
// QEMU runs in new mount, network, IPC, UTS and PID namespaces. It starts with a read-only root that holds the host's
// libraries and QEMU's data files, no capabilities but those for the next step, no new privileges, and resource
// limits. When the machine is set up, and before the guest's first instruction, it changes to an empty root, in which
// there is one directory with the sockets of the VM's own disks and network cards, and (if started by root) to a user
// of its own. From then on it has no capability (if started by root) or the one for chroot in its own user namespace
// (otherwise), and its own system-call filter, under which it cannot start programs. Files are passed to it by
// descriptor.
//
// Limits of its memory, CPU and I/O are the caller's matter: put VM.PID into a cgroup, before VM.Resume if it must
// hold from the first instruction.
//
// # Life and death
//
// QEMU outlives the process that started it; Adopt takes it over. A guest that powers off, resets or panics leaves
// QEMU paused, so that the cause can be read even by a process that was not there; VM reads it, ends QEMU, and
// reports an End.
//
// Whatever QEMU says is bounded and treated as hostile.
package qemu
