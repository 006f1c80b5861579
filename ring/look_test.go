package ring

import (
	"encoding/binary"
	"slices"
	"testing"
)

// What Look says of chains, good ones and such as somebody has made up.
func TestLook(t *testing.T) {
	const table, other, size = 0x1000, 0x2000, 4
	for name, c := range map[string]struct {
		descs              map[uint64]descriptor // by address
		head               uint16
		readable, writable []Segment
	}{
		"one": {map[uint64]descriptor{table: {addr: 5, len: 6}}, 0, []Segment{{5, 6}}, nil},
		"chain": {map[uint64]descriptor{table + 16: {addr: 1, len: 16, flags: descNext, next: 3}, table + 48: {addr: 2, len: 9, flags: descWrite}}, 1,
			[]Segment{{1, 16}}, []Segment{{2, 9}}},
		"indirect": {map[uint64]descriptor{table: {addr: other, len: 32, flags: descIndirect}, other: {addr: 1, len: 2, flags: descNext, next: 1},
			other + 16: {addr: 3, len: 4, flags: descWrite}}, 0, []Segment{{1, 2}}, []Segment{{3, 4}}},
		"indirect within indirect": {map[uint64]descriptor{table: {addr: other, len: 16, flags: descIndirect}, other: {addr: other, len: 16, flags: descIndirect}}, 0, nil, nil},
		"head outside":             {nil, size, nil, nil},
		"next outside":             {map[uint64]descriptor{table: {addr: 1, len: 2, flags: descNext, next: size}}, 0, []Segment{{1, 2}}, nil},
		"no memory":                {map[uint64]descriptor{}, 0, nil, nil},
	} {
		read := func(addr uint64, b []byte) bool {
			d, ok := c.descs[addr]
			if ok {
				storeDesc(b, 0, d)
			}
			return ok
		}
		readable, writable := Look(read, table, size, c.head)
		if !slices.Equal(readable, c.readable) || !slices.Equal(writable, c.writable) {
			t.Errorf("%s: %v, %v", name, readable, writable)
		}
	}
	turns := 0
	readable, _ := Look(func(_ uint64, b []byte) bool {
		turns++
		storeDesc(b, 0, descriptor{addr: 1, len: 1, flags: descNext})
		return true
	}, table, size, 0)
	if turns != maxLook || len(readable) != maxLook {
		t.Errorf("a chain without an end was followed for %d descriptors", turns)
	}
}

func TestInflightHeads(t *testing.T) {
	region := make([]byte, InflightBytes(8))
	for head, order := range map[int]uint64{6: 1, 2: 9, 3: 4} {
		e := region[logEntries+head*logEntryLen:]
		e[entInflight] = 1
		binary.LittleEndian.PutUint64(e[entCounter:], order)
	}
	if heads := InflightHeads(region); !slices.Equal(heads, []uint16{6, 3, 2}) || CountInflight(region) != len(heads) {
		t.Errorf("%v", heads)
	}
	if heads := InflightHeads(nil); len(heads) != 0 {
		t.Errorf("of nothing: %v", heads)
	}
}
