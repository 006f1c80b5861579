// Package native is the personality of ordinary static Linux binaries, on the host's side: it checks that a
// program can run as a native guest, packs the files that it is to see, and knows its default environment.
// The binaries run on hv's kernel as they are; docs/abi.md lists what they may use.
package native
