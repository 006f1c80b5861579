// Package sandbox runs a Grail of its own for demonstrations and long tests: state, sockets and graild are private,
// everything is done through grailctl as a user would do it, or its API, and nothing is left afterwards.
package sandbox
