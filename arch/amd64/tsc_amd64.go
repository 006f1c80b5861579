package amd64

// RDTSC returns the host's time-stamp counter, read after all earlier instructions are done (Intel SDM vol. 2
// RDTSC).
func RDTSC() uint64
