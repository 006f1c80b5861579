// Package fence keeps domains in cgroups: their part of the processors and a cap on it, bounds of memory and threads, and the processors that
// they run on. Hosts with cgroup v1, v2, or neither that the caller may use are all fine; what is not enforced is said. Groups are made below the
// caller's own only, and removed with their last member.
package fence
