//go:build linux && amd64

package process

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"golang.org/x/net/bpf"
)

// childSpec travels from Start to ChildMain over their socket: a little-endian length and JSON. Arguments are bytes,
// since they need not be UTF-8.
type childSpec struct {
	Argv, Env [][]byte
	Filter    []bpf.RawInstruction
	// Killable asks for SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, where the kernel has it.
	Killable bool
	// Jailed is false when the namespaces are missing: the root stays.
	Jailed bool
	// The child takes on ID as its user and only group, in its namespace, unless it is to KeepIDs.
	ID      int
	KeepIDs bool
	Limits  []limit
}

// maxSpec bounds a childSpec in bytes: more than execve itself takes (6 MiB, as base64).
const maxSpec = 16 << 20

// The child's descriptors until it executes the guest: the socket to the parent and the program.
const (
	childSocket  = 0
	childProgram = 3
)

// childName is argv[0] of the jail child.
const childName = "grail-process-jail"

// The child's messages: hello, with its /proc directory, once it runs; and ready, with the seccomp listener. Anything
// else on the socket is the text of an error.
const (
	hello = "H"
	ready = "R"
)

func writeSpec(w io.Writer, s *childSpec) error {
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(body) > maxSpec {
		return fmt.Errorf("process: arguments and environment of %d bytes, at most %d", len(body), maxSpec)
	}
	_, err = w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readSpec(r io.Reader) (*childSpec, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxSpec {
		return nil, fmt.Errorf("specification of %d bytes", n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	s := new(childSpec)
	return s, json.Unmarshal(body, s)
}
