// Package vcpu is the parent of Grail's engines, which execute guest code: kvm runs native guests in guest user
// mode behind /dev/kvm, process runs the same guests as jailed host processes.
package vcpu
