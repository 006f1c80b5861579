package console

// Env is the environment of the driver VM's program; see drivervms/blk.
var Env = []string{"GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=none"}

// MinMemory is the least guest memory that the driver VM's program runs in, in bytes.
const MinMemory = 64 << 20
