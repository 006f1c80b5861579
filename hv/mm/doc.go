// Package mm is the memory of a native guest on engine kvm: a fixed amount of guest-physical RAM, the areas
// that the guest has mapped, and the page tables that realise them. Pages are given out when they are first
// touched, never beyond that amount, nor beyond a bound that the host has set (Ask, Enforce, Repossess). Of some of it
// there can always be host memory (Reserve).
//
// The guest has no hand in its page tables, so a translation is wrong only if this package makes it so. Host
// code reads and writes guest memory by guest-virtual addresses, with the permissions that the guest has.
package mm
