package ring_test

import (
	"testing"

	"github.com/grailos/grail/ring"
)

// bed is a queue with both ends in one region of ordinary memory, and room for data behind it.
type bed struct {
	mem    []byte
	m      *ring.Memory
	q      ring.Queue
	dcfg   ring.DriverConfig
	data   uint64 // address of the data area
	drv    *ring.Driver
	dev    *ring.Device
	logMem []byte // nil without a log
}

const bedBase = 0x10000

func newBed(t testing.TB, size uint16, features uint64, base uint16, indirectMax uint16, logged bool) *bed {
	t.Helper()
	b, err := makeBed(size, features, base, indirectMax, logged, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func makeBed(size uint16, features uint64, base, indirectMax uint16, logged bool, dataBytes int) (*bed, error) {
	l, err := ring.LayoutOf(size)
	if err != nil {
		return nil, err
	}
	tables := l.Bytes
	data := tables + ring.IndirectBytes(size, indirectMax)
	b := &bed{mem: alignedBytes(int(data) + dataBytes), data: bedBase + data}
	if b.m, err = ring.NewMemory(ring.Region{Base: bedBase, Mem: b.mem}); err != nil {
		return nil, err
	}
	b.q = l.At(bedBase, features)
	b.dcfg = ring.DriverConfig{Queue: b.q, Base: base, IndirectMax: indirectMax}
	if indirectMax > 0 {
		b.dcfg.IndirectTables = bedBase + tables
	}
	if b.drv, err = ring.NewDriver(b.m, b.dcfg); err != nil {
		return nil, err
	}
	if logged {
		b.logMem = alignedBytes(int(ring.InflightBytes(size)))
	}
	return b, b.makeDevice(base)
}

// makeDevice replaces the device, as after a crash.
func (b *bed) makeDevice(last uint16) (err error) {
	c := ring.DeviceConfig{Queue: b.q, LastAvail: last}
	if b.logMem != nil {
		if c.Log, err = ring.NewInflight(b.logMem, b.q.Size); err != nil {
			return err
		}
	}
	b.dev, err = ring.NewDevice(b.m, c)
	return err
}

// newDevice is makeDevice for tests.
func (b *bed) newDevice(t testing.TB, last uint16) {
	t.Helper()
	if err := b.makeDevice(last); err != nil {
		t.Fatal(err)
	}
}

// alignedBytes returns n bytes that start at a multiple of 4096, as a mapping would.
func alignedBytes(n int) []byte {
	b := make([]byte, n+4096)
	for i := range 4096 {
		if ring.Aligned(b[i:], 4096) {
			return b[i : i+n : i+n]
		}
	}
	panic("no aligned byte in a page")
}
