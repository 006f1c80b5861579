// Package load puts block requests on one queue of a vhost-user back end, or frames on a network card, and counts what comes back. It polls: on the
// client's side there is no system call between a request and its completion, unless the back end asks for its doorbell.
package load
