package net

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring/virtionet"
)

// TestSocket: frames keep their bounds, up to the longest, and nothing blocks.
func TestSocket(t *testing.T) {
	u, stack, err := NewSocket(vswitch.Offloads | 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	defer u.File.Close()
	defer stack.Close()
	c := u.Cap()
	if c.Kind != abi.CapPacket || c.Name != vswitch.UplinkName || binary.LittleEndian.Uint64(c.Config) != vswitch.Offloads {
		t.Errorf("%+v", c)
	}
	b := make([]byte, vswitch.UplinkBuffer+1)
	for _, n := range []int{virtionet.HeaderBytes + 14, 1526, vswitch.UplinkBuffer} {
		want := bytes.Repeat([]byte{byte(n)}, n)
		for range 3 {
			if k, err := unix.Write(c.FD, want); err != nil || k != n {
				t.Fatal(k, err)
			}
		}
		for range 3 {
			if k, err := unix.Read(int(stack.Fd()), b); err != nil || !bytes.Equal(b[:k], want) {
				t.Fatalf("%d of %d: %v", k, n, err)
			}
		}
	}
	if _, err := unix.Read(c.FD, b); err != unix.EAGAIN {
		t.Error(err)
	}
	for n := 0; ; n++ {
		if _, err := unix.Write(c.FD, b[:1526]); err == unix.EAGAIN {
			t.Logf("%d frames of 1500 bytes fit", n)
			break
		} else if err != nil || n > 1e6 {
			t.Fatal(n, err)
		}
	}
}

func TestTap(t *testing.T) {
	if _, err := OpenTap("a name that is much too long"); err == nil {
		t.Error("a name of 28 bytes was taken")
	}
	if os.Getenv("GRAIL_TEST_TAP") == "" {
		t.Skip("SKIPPED: set GRAIL_TEST_TAP to the name of a tap device that this test may make")
	}
	u, err := OpenTap(os.Getenv("GRAIL_TEST_TAP"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.File.Close()
	if _, err := unix.Read(u.Cap().FD, make([]byte, vswitch.UplinkBuffer)); err != unix.EAGAIN && err != unix.EIO {
		t.Error(err)
	}
}
