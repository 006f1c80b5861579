package program

import (
	"encoding/json"
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
	return h.Answer(m, err)
}
