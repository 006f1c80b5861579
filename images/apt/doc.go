// Package apt fetches packages of the distribution for any of its architectures and unpacks them into a folder,
// without installing them and without changing what the machine's apt knows: neither its lists nor its architectures.
//
// Mirrors, keys and proxies are those of the machine's own apt configuration.
package apt
