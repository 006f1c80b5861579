// Package daemon is graild: it starts VMs and driver VMs as grailvm processes, wires drivers to their clients, and
// replaces drivers that die. Everything that must survive graild itself lies in the store, in files of the
// state directory, or in the grailvm processes, which give descriptors back to the next graild.
//
// Locking: Daemon.mu guards the two tables of names; vm.mu and driver.mu guard one VM's state and are never held
// while waiting for a process, a socket or the disk. The order is Daemon.mu, vm.mu, driver.mu, client.mu.
package daemon
