// Package plan is what the host (images/nested/boot) and the emulated machine's first process
// (images/nested/init) say to each other: a list of steps in the initial file system, and a stream of results on
// the second serial port. Both sides are built together, so there is one version of it.
package plan
