// Package kernel takes a Linux kernel from the distribution's package: its bootable image and the modules that a machine
// needs, in the order of loading. Nothing is installed.
package kernel
