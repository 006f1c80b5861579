// Package busybox makes the default image of the Linux personality: a small system of the distribution's static busybox, for an initial file
// system. The same package gives the same bytes.
package busybox
