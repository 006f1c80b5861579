// Package engine finds out which engines can run guests on this host, and chooses one.
package engine
