// Package place knows where Grail's things lie on the host: its state, its sockets and its programs.
package place
