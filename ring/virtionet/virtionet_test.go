package virtionet_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/grailos/grail/ring/virtionet"
)

// TestConfigLayout checks each field's place against struct virtio_net_config of virtio 1.2 §5.1.4.
func TestConfigLayout(t *testing.T) {
	for name, f := range map[string]struct {
		set   func(*virtionet.Config)
		at, n int
	}{
		"mac":                 {func(c *virtionet.Config) { c.MAC = [6]byte{255, 255, 255, 255, 255, 255} }, 0, 6},
		"status":              {func(c *virtionet.Config) { c.Status = 1<<16 - 1 }, 6, 2},
		"max_virtqueue_pairs": {func(c *virtionet.Config) { c.MaxPairs = 1<<16 - 1 }, 8, 2},
		"mtu":                 {func(c *virtionet.Config) { c.MTU = 1<<16 - 1 }, 10, 2},
		"speed":               {func(c *virtionet.Config) { c.Speed = 1<<32 - 1 }, 12, 4},
		"duplex":              {func(c *virtionet.Config) { c.Duplex = 255 }, 16, 1},
	} {
		var c virtionet.Config
		f.set(&c)
		var want [virtionet.ConfigBytes]byte
		for i := range f.n {
			want[f.at+i] = 0xff
		}
		if got := c.Encode(); got != want {
			t.Errorf("%s: % x", name, got)
		}
		if got := virtionet.DecodeConfig(want[:]); got != c {
			t.Errorf("%s: decoded %+v", name, got)
		}
	}
	if n := reflect.TypeFor[virtionet.Config]().NumField(); n != 6 {
		t.Errorf("%d fields, 6 checked", n)
	}
	if c := virtionet.DecodeConfig([]byte{2, 0, 0, 0, 0, 9}); c.MAC != [6]byte{2, 0, 0, 0, 0, 9} || c.MTU != 0 {
		t.Errorf("of a short space: %+v", c)
	}
}

// TestHeaderLayout checks struct virtio_net_hdr_v1 of virtio 1.2 §5.1.6.
func TestHeaderLayout(t *testing.T) {
	b := make([]byte, virtionet.HeaderBytes)
	h := virtionet.Header{Flags: 1, GSOType: 2, HdrLen: 0x0403, GSOSize: 0x0605, CsumStart: 0x0807, CsumOffset: 0x0a09, NumBuffers: 0x0c0b}
	h.Encode(b)
	for i, x := range b {
		if int(x) != i+1 {
			t.Fatalf("% x", b)
		}
	}
	if virtionet.DecodeHeader(b) != h {
		t.Errorf("%+v", virtionet.DecodeHeader(b))
	}
}

func TestHeaderCheck(t *testing.T) {
	const (
		csum = virtionet.FeatureCsum
		tso4 = csum | virtionet.FeatureHostTSO4
		tso6 = csum | virtionet.FeatureHostTSO6
	)
	part := func(start, off uint16) virtionet.Header {
		return virtionet.Header{Flags: virtionet.NeedsCsum, CsumStart: start, CsumOffset: off}
	}
	large := func(kind byte, size uint16) virtionet.Header {
		return virtionet.Header{Flags: virtionet.NeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: kind, GSOSize: size}
	}
	for _, c := range []struct {
		name     string
		h        virtionet.Header
		n        int
		features uint64
		ok       bool
	}{
		{"plain", virtionet.Header{}, 60, 0, true},
		{"plain with a hint", virtionet.Header{HdrLen: 54, NumBuffers: 7}, 60, 0, true},
		{"checksum", part(34, 16), 60, csum, true},
		{"checksum without the feature", part(34, 16), 60, virtionet.FeatureGuestCsum, false},
		{"checksum at the end", part(34, 16), 52, csum, true},
		{"checksum beyond the end", part(34, 16), 51, csum, false},
		{"checksum start huge", part(65535, 65535), 60, csum, false},
		{"checksum offset huge", part(0, 65535), 60, csum, false},
		{"verified", virtionet.Header{Flags: virtionet.DataValid}, 60, 0, true},
		{"unknown flag", virtionet.Header{Flags: 8}, 60, csum, false},
		{"large v4", large(virtionet.GSOTCPv4, 1448), 60000, tso4, true},
		{"large v4 as v6", large(virtionet.GSOTCPv4, 1448), 60000, tso6, false},
		{"large v6", large(virtionet.GSOTCPv6, 1448), 60000, tso6, true},
		{"large with ECN", large(virtionet.GSOTCPv4|virtionet.GSOECN, 1448), 60000, tso4 | virtionet.FeatureHostECN, true},
		{"large with ECN without the feature", large(virtionet.GSOTCPv4|virtionet.GSOECN, 1448), 60000, tso4, false},
		{"large of no payload", large(virtionet.GSOTCPv4, 0), 60000, tso4, false},
		{"large UDP", large(virtionet.GSOUDP, 1448), 60000, tso4 | tso6, false},
		{"large UDP of the other kind", large(virtionet.GSOUDPL4, 1448), 60000, tso4 | tso6, false},
		{"ECN alone", large(virtionet.GSOECN, 1448), 60000, tso4 | virtionet.FeatureHostECN, false},
		{"large without checksum", virtionet.Header{GSOType: virtionet.GSOTCPv4, GSOSize: 9}, 60000, tso4, false},
		{"longest", large(virtionet.GSOTCPv4, 1448), virtionet.MaxFrame, tso4, true},
		{"too long", large(virtionet.GSOTCPv4, 1448), virtionet.MaxFrame + 1, tso4, false},
	} {
		err := c.h.Check(c.n, c.features)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, virtionet.ErrHeader) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FuzzHeader: a header that passes names only bytes of its frame, and survives a round trip.
func FuzzHeader(f *testing.F) {
	f.Add([]byte{1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0}, uint16(1500), ^uint64(0))
	f.Add([]byte{1, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0}, uint16(60), ^uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, n uint16, features uint64) {
		if len(b) < virtionet.HeaderBytes {
			return
		}
		h := virtionet.DecodeHeader(b)
		out := make([]byte, virtionet.HeaderBytes)
		if h.Encode(out); string(out) != string(b[:virtionet.HeaderBytes]) {
			t.Fatalf("% x became % x", b, out)
		}
		if h.Check(int(n), features) != nil {
			return
		}
		frame := make([]byte, n)
		if h.Flags&virtionet.NeedsCsum != 0 {
			_ = frame[h.CsumStart:][h.CsumOffset:][:2]
			if features&virtionet.FeatureCsum == 0 {
				t.Fatal("checksum without the feature")
			}
		}
		if h.GSOType != 0 && (h.GSOSize == 0 || h.Flags&virtionet.NeedsCsum == 0) {
			t.Fatalf("%+v", h)
		}
	})
}
