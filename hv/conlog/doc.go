// Package conlog keeps what a guest says on its console: a bounded log in two files, and the last lines. What a guest writes is never
// interpreted.
package conlog
