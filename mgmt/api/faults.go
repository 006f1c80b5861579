package api

// FaultKinds are the faults that can be injected, in the order in which they are shown.
var FaultKinds = []FaultKind{
	{Name: "kill", VM: true, Summary: "the program in the VM gets SIGKILL"},
	{Name: "vmm:kill", VM: true, Summary: "the process that runs the VM gets SIGKILL"},
	{Name: "hang:loop", Summary: "the program loops for ever, with requests in hand"},
	{Name: "hang:deadlock", Summary: "two threads of the program wait for each other's lock for ever"},
	{Name: "stall", Drivers: []string{"blk"}, Summary: "the program beats, but leaves what it took lying"},
	{Name: "memory", Summary: "the program uses up the VM's memory"},
}
