// Package jail takes away from a grailvm process everything that it does not need to run its guest: the host's file
// tree, its user, its capabilities, and every system call that is not on a list. It is entered once, when all
// descriptors are there, and cannot be left.
package jail
