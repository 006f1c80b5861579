// Package e2e tests Grail as its users meet it: the real grailctl, graild and grailvm with real guests and drivers, on
// every engine that the host has.
package e2e
