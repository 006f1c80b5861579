// Package disasm turns the bytes at a faulting guest's instruction pointer into a line of assembly for its crash
// report.
package disasm
