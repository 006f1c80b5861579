// Package initramfs writes initial file systems in the format that Linux unpacks at start
// (Documentation/driver-api/early-userspace/buffer-format.rst). The same input gives the same bytes: entries are sorted,
// owned by root, and carry no times.
package initramfs
