// Package program is what the programs of driver VMs have in common: their start and end, their loop between host and clients, the memory of their
// clients, and crashes on request.
package program
