// Package serve is the work of the console driver VM without the VM: it takes what VMs print from rings in shared memory and writes it to their logs. Rings and
// what comes through them are hostile.
package serve
