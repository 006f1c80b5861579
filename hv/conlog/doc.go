// Package conlog keeps what a guest says on its console: the last lines, and all of it, bounded, in the ring of a console driver or in two files. What a
// guest writes is never interpreted.
package conlog
