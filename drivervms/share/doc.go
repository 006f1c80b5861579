// Package share divides a driver's work among its clients: what was guaranteed first, then by weight, and nobody beyond its cap. It is pure
// code, without I/O and without a clock of its own; times are nanoseconds of one monotonic clock of the caller's.
//
// Clients are the leaves of a tree of groups (tenants). Among the children of one group it is deficit round robin by cost, that is bytes and so
// many more for each operation; a child that was idle and has something left of its part of the present round goes before those that always have
// work, so that who asks for little does not wait behind who floods (MacGregor and Shi, Deficits for Bursty Latency-critical Flows:
// DRR++, ICON 2000). Guarantees and caps are token buckets. A decision takes constant time in the number of clients, but for those whose cap or
// guarantee has run out, which wait in a heap; nothing is allocated for it.
//
// Meter divides the processor time that the driver's VM has used among those for whom it was.
package share
