// Package serve is the block driver VM's work without the VM: it serves virtio-blk queues of many clients
// from a few devices, through an interface that does the device I/O in batches. The driver VM's program joins
// it with the grail system calls; tests join it with a disk in memory.
//
// One goroutine owns a Server. A round takes a bounded batch from every queue in turn, performs it with one
// call of the device, and publishes the completions. Requests that need a flush wait for it, together; with
// several clients the flush runs on a second thread. All that matters across rounds stands in the rings and
// the in-flight logs, so the Server may die between any two steps.
package serve
