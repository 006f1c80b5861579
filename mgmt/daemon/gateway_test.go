package daemon

import (
	"net/netip"
	"testing"
)

func TestLastAddress(t *testing.T) {
	for subnet, want := range map[string]string{
		defaultSubnet: "10.77.255.254", "10.0.0.0/24": "10.0.0.254", "192.168.1.4/30": "192.168.1.6", "255.255.255.0/24": "255.255.255.254", "10.0.0.0/8": "10.255.255.254",
	} {
		if got := lastAddress(netip.MustParsePrefix(subnet)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", subnet, got, want)
		}
	}
}
