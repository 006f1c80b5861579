// Package trace turns a guest's fault into something a person can read: the fault in words, the instruction, and
// the stack with function names and lines from the guest's program. Everything in a fault is the guest's and
// may be anything.
package trace
