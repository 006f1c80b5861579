package daemon

import (
	"errors"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// askTimeout is longer than a grailvm takes to find that its driver is silent.
const askTimeout = hv.AskTimeout + time.Second

// ask puts a question to the driver's program and returns the text of its answer.
func (i *driverInstance) ask(m abi.Message) (string, error) {
	resp, got, err := i.call(hv.Request{Op: hv.OpAsk, Message: &m}, askTimeout)
	closeFDs(got)
	if err != nil {
		return "", err
	}
	if resp.Message == nil {
		return "", errors.New("the VM's process answered without a message")
	}
	return resp.Message.Text, nil
}
