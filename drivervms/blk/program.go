package blk

// Env is the environment of the driver VM's program. Without asynchronous preemption the Go runtime sends no
// signals between its threads, each of which would be an exit; and the program prints its stack itself when it
// panics, where the runtime would need hundreds of exits.
var Env = []string{"GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=none"}

// MinMemory is the least guest memory that the driver VM's program runs in, in bytes.
const MinMemory = 64 << 20
