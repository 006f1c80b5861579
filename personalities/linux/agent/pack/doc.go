// Package pack puts the agent into a guest: into the initial file system that its kernel starts with, and a configuration behind that.
package pack
