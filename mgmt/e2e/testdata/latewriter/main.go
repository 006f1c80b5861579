// Command latewriter is a driver's program that serves nobody. From its first client on it writes, on several threads at once and for ever, a number of
// its own and a count over its device and over its client's buffers: whoever looks at these afterwards can tell what it wrote after it was dead.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/program"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
)

const (
	// mark is the distance between two marks: each is the instance's number and a count, of 8 bytes each.
	mark = 4096
	// chunk is what one system call writes.
	chunk = 1 << 20
	// writers is the number of threads that write to the device.
	writers = 3
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "latewriter:", err)
		os.Exit(1)
	}
}

func run() error {
	c, err := guest.OpenChannel()
	if err != nil {
		return err
	}
	if err := c.Send(abi.Message{Type: abi.MsgReady}); err != nil {
		return err
	}
	for {
		m, err := c.Receive()
		if err != nil {
			return err
		}
		answer := abi.Message{Type: m.Type, ID: m.ID}
		if m.Type == abi.MsgAttach {
			answer.Type = abi.MsgDone
			if err := write(m.Attach); err != nil {
				answer.Text = err.Error()
			}
		}
		if err := c.Send(answer); err != nil {
			return err
		}
	}
}

// write starts to write.
func write(a *abi.Attach) error {
	var m program.Mapping
	memory, err := m.AddRegions(a)
	if err != nil {
		return err
	}
	buffers, err := memory.Slice(abi.BuffersAt, chunk)
	if err != nil {
		return err
	}
	caps, err := guest.Caps()
	if err != nil {
		return err
	}
	instance := rand.Uint64() | 1
	for _, dev := range caps {
		if dev.Kind != abi.CapDevice {
			continue
		}
		for w := range writers {
			go toDevice(int(dev.FD), dev.Size, instance, w)
		}
		go toMemory(buffers, instance)
		return nil
	}
	return errors.New("no device")
}

func marks(b []byte, instance, count uint64) {
	for at := 0; at < len(b); at += mark {
		binary.LittleEndian.PutUint64(b[at:], instance)
		binary.LittleEndian.PutUint64(b[at+8:], count)
	}
}

func toMemory(b []byte, instance uint64) {
	for count := uint64(1); ; count++ {
		marks(b, instance, count)
	}
}

func toDevice(fd int, size, instance uint64, writer int) {
	b := make([]byte, chunk)
	for count := uint64(writer + 1); ; count += writers {
		marks(b, instance, count)
		if _, err := unix.Pwrite(fd, b, int64(count*chunk%size)); err != nil {
			panic(err)
		}
		if count%8 == 0 {
			if err := unix.Fdatasync(fd); err != nil {
				panic(err)
			}
		}
	}
}
