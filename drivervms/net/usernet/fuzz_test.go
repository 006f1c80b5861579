package usernet

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"testing"

	grailnet "github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/ring/virtionet"
)

// frameOf returns an Ethernet frame behind an empty header.
func frameOf(ether uint16, payload ...byte) []byte {
	b := make([]byte, virtionet.HeaderBytes, 100)
	b = append(b, grailnet.GatewayMAC[:]...)
	b = append(b, 2, 0, 0, 0, 0, 2)
	return append(binary.BigEndian.AppendUint16(b, ether), payload...)
}

// ipv4Of returns an IPv4 packet from the guest, with a checksum.
func ipv4Of(proto byte, dst [4]byte, payload ...byte) []byte {
	b := make([]byte, 20, 100)
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	src := testGuest.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	return append(b, payload...)
}

// FuzzFrames: whatever the switch sends, nothing breaks, and what goes to the host's network goes where a guest may go.
func FuzzFrames(f *testing.F) {
	outside := [4]byte{192, 0, 2, 1}
	syn := []byte{0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0}
	for _, b := range [][]byte{
		{}, make([]byte, 11), make([]byte, 26), frameOf(0x0800), frameOf(0x86dd, make([]byte, 40)...),
		frameOf(0x0806, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 10, 9, 0, 254),
		frameOf(0x0800, ipv4Of(6, outside, syn...)...), frameOf(0x0800, ipv4Of(6, [4]byte{127, 0, 0, 1}, syn...)...),
		frameOf(0x0800, ipv4Of(17, outside, 0x10, 0, 0, 53, 0, 12, 0, 0, 'h', 'i', '!', '!')...),
		frameOf(0x0800, ipv4Of(17, testGateway.As4(), 0x10, 0, 0, 53, 0, 9, 0, 0, 'q')...),
		frameOf(0x0800, ipv4Of(1, outside, 8, 0, 0xf7, 0xfd, 0, 1, 0, 1)...), frameOf(0x0800, ipv4Of(1, testGateway.As4(), 8, 0, 0xf7, 0xfd, 0, 1, 0, 1)...),
	} {
		f.Add(b, b)
	}
	near, far, err := grailnet.NewSocket(grailnet.NATOffloads)
	if err != nil {
		f.Fatal(err)
	}
	n, err := New(testConfig(false), polled(f, far))
	far.Close()
	if err != nil {
		f.Fatal(err)
	}
	n.pings.missing = "a test's pings go nowhere"
	n.dial = func(_ context.Context, _, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if ip := net.ParseIP(host); err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
			panic("a guest may not go to " + address)
		}
		return nil, errors.New("nothing is there")
	}
	f.Cleanup(func() {
		n.Close()
		near.File.Close()
	})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		n.link.take(first)
		n.link.take(second)
		if s := n.State(); s.TCP+s.UDP > maxFlows {
			t.Errorf("%+v", s)
		}
	})
}
