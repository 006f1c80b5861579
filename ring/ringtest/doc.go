// Package ringtest supplies the other side for tests of rings: a slow and obvious reference queue to compare
// with, peers that break the rules, and a small block server and client that speak vhost-user. It is for tests
// and benchmarks only.
package ringtest
