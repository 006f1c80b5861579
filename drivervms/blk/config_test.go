package blk

import (
	"testing"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

func TestDevice(t *testing.T) {
	for _, c := range []struct {
		d  Device
		ok bool
	}{
		{Device{Size: 512, Queues: 1}, true},
		{Device{Size: 511, Queues: 1}, false},
		{Device{Size: 1 << 63, Queues: 1}, false},
		{Device{Size: 1 << 20, Queues: 0}, false},
		{Device{Size: 1 << 20, Queues: MaxQueues}, true},
		{Device{Size: 1 << 20, Queues: MaxQueues + 1}, false},
	} {
		if err := c.d.Check(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.d, err)
		}
	}
	for _, d := range []Device{
		{Size: 1000, Queues: 3},
		{Size: 1 << 30, Queues: 4, Discard: true},
		{Size: 1 << 30, Queues: 1, ReadOnly: true, Discard: true},
	} {
		b, f := d.Config(), d.Features()
		c := virtioblk.DecodeConfig(b[:])
		if c.Capacity != d.Size/512 || int(c.NumQueues) != d.Queues || c.SegMax == 0 {
			t.Errorf("%+v: %+v", d, c)
		}
		if (f&virtioblk.FeatureReadOnly != 0) != d.ReadOnly ||
			(f&virtioblk.FeatureDiscard != 0) != (d.Discard && !d.ReadOnly) || (c.MaxDiscardSegs != 0) != (f&virtioblk.FeatureDiscard != 0) ||
			(f&virtioblk.FeatureWriteZeroes != 0) == d.ReadOnly || (c.MaxWriteZeroSegs != 0) == d.ReadOnly {
			t.Errorf("%+v: features %#x, %+v", d, f, c)
		}
		if err := d.CheckFeatures(f); err != nil {
			t.Error(err)
		}
		if err := d.CheckFeatures(f &^ ring.FeatureVersion1); err == nil {
			t.Error("a legacy driver was accepted")
		}
		if err := d.CheckFeatures(f | virtioblk.FeatureConfigWCE); err == nil {
			t.Error("a feature that was not offered was accepted")
		}
	}
}
