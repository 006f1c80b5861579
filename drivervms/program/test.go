package program

import (
	"encoding/json"
	"runtime"
	"runtime/debug"

	"github.com/grailos/grail/hv/abi"
)

// Test answers abi.MsgTest with what test says.
//
// It is the rehearsal of a take-over as well. The first use of a page of code, or of a type in JSON, costs a fault or more, which a spare is to have behind it
// when clients wait: so an attachment is decoded here, and a stack written.
func (h *Host) Test(m abi.Message, test func() error) error {
	debug.Stack()
	b, err := json.Marshal(abi.Message{Type: abi.MsgAttach, Attach: &abi.Attach{Regions: []abi.Region{{}}, Queues: []abi.Queue{{}}}})
	if err == nil {
		err = json.Unmarshal(b, new(abi.Message))
	}
	if err == nil {
		err = test()
	}
	rehearseHeap()
	return h.Answer(m, err)
}

// rehearsedHeap is the memory that a take-over may need, in bytes; a block driver's first attachment takes some 100 KiB.
const rehearsedHeap = 1 << 20

// rehearseHeap touches memory and gives it back to the heap, which hands it out again first: of memory that was never touched, each page costs two faults.
func rehearseHeap() {
	const page = 4096
	b := make([]byte, rehearsedHeap)
	for i := 0; i < len(b); i += page {
		b[i] = 1
	}
	runtime.KeepAlive(b)
	runtime.GC()
}
