// Package reincarnation decides when a driver VM is dead and how long its successor has to wait. It does no I/O:
// time and observations come in, verdicts go out.
package reincarnation
