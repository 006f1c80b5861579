// Command baddriver is a driver's program that is no good. Where it fails is set when it is built: it never gets ready ("ready"), its
// test of itself fails ("test"), or it dies when it is given its first client ("attach").
package main

import (
	"fmt"
	"os"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

var fails string

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "baddriver:", err)
		os.Exit(1)
	}
}

func run() error {
	c, err := guest.OpenChannel()
	if err != nil {
		return err
	}
	if fails != "ready" {
		if err := c.Send(abi.Message{Type: abi.MsgReady}); err != nil {
			return err
		}
	}
	for {
		m, err := c.Receive()
		if err != nil {
			return err
		}
		switch m.Type {
		case abi.MsgTest:
			answer := abi.Message{Type: m.Type, ID: m.ID}
			if fails == "test" {
				answer.Text = "the device smells odd"
			}
			if err := c.Send(answer); err != nil {
				return err
			}
		case abi.MsgAttach:
			panic("told to fail at the first client")
		}
	}
}
