// Package fence puts a VM's process into a cgroup: a CPU cap, and a memory limit as a second fence around what the
// VMM itself enforces. Hosts with cgroup v1, v2, or neither that the caller may use are all fine; what is not
// enforced is said.
package fence
