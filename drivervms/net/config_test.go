package net

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtionet"
)

func testPort() Port {
	return Port{Pairs: 2, PortConfig: vswitch.PortConfig{
		Name: "web", Tenant: 3, MAC: vswitch.MAC{2, 0, 0, 0, 0, 1}, MTU: 9000,
		Addr: netip.MustParsePrefix("10.1.2.3/24"), Gateway: netip.MustParseAddr("10.1.2.1"), Service: netip.MustParseAddr("10.1.2.2"),
		Addr6: netip.MustParseAddr("fd00::3"),
	}}
}

func TestPort(t *testing.T) {
	p := testPort()
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, -1, vswitch.MaxPairs + 1} {
		q := p
		if q.Pairs = n; q.Check() == nil {
			t.Errorf("%d pairs were taken", n)
		}
	}
	f := p.Features()
	for _, c := range []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"all", f, true},
		{"native", guest.NetFeatures, true},
		{"legacy", f &^ ring.FeatureVersion1, false},
		{"not offered", f | 1<<60, false},
		{"large frames to the driver without checksums", f &^ virtionet.FeatureGuestCsum, false},
		{"large frames to the device without checksums", f &^ virtionet.FeatureCsum, false},
		{"checksums only", guest.NetFeatures | virtionet.FeatureCsum | virtionet.FeatureGuestCsum, true},
	} {
		if err := p.CheckFeatures(c.features); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if c := p.Config(); c.MAC != p.MAC || c.MTU != 9000 || c.MaxPairs != 2 || c.Status != virtionet.StatusLinkUp {
		t.Errorf("%+v", c)
	}
	if one := (Port{Pairs: 1, PortConfig: p.PortConfig}); one.Features()&virtionet.FeatureMultiQueue != 0 {
		t.Error("one pair is offered as many")
	}
}

func TestGrant(t *testing.T) {
	g := testPort().Grant(DefaultQueueSize)
	var config [64]byte
	g.Put(&config)
	if got := guest.ParseNetGrant(&config); got != g {
		t.Errorf("%+v became %+v", g, got)
	}
	if g.Addr.String() != "10.1.2.3/24" || g.DNS.String() != "10.1.2.2" || g.Queues != 4 || g.FrameBytes() != 9014 {
		t.Errorf("%+v", g)
	}
	if !g.Valid(g.Size()) || g.Valid(g.Size()-1) {
		t.Error("the size is not the bound")
	}
	for _, bad := range []guest.NetGrant{{}, {QueueSize: 3, Queues: 2}, {QueueSize: 4, Queues: 3}, {QueueSize: 1024, Queues: 2}, {QueueSize: 4, Queues: 34}} {
		if bad.Valid(1 << 40) {
			t.Errorf("%+v is valid", bad)
		}
	}
	if got := guest.ParseNetGrant(&[64]byte{}); got != (guest.NetGrant{}) {
		t.Errorf("%+v", got)
	}
}

// TestAttachText: a configuration crosses the control channel unchanged, and what is not set does not show.
func TestAttachText(t *testing.T) {
	for _, p := range []Port{testPort(), {Pairs: 1, PortConfig: vswitch.PortConfig{Name: "x", MAC: vswitch.MAC{2, 1}}}} {
		text, err := p.AttachText()
		if err != nil {
			t.Fatal(err)
		}
		var c vswitch.PortConfig
		if err := json.Unmarshal([]byte(text), &c); err != nil || c != p.PortConfig {
			t.Errorf("%s: %+v, %v", text, c, err)
		}
	}
	if text, _ := (Port{PortConfig: vswitch.PortConfig{Name: "x", MAC: vswitch.MAC{2, 1}}}).AttachText(); text != `{"name":"x","tenant":0,"mac":"02:01:00:00:00:00"}` {
		t.Error(text)
	}
}
