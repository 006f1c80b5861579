package ring

import "testing"

// TestNeedEvent compares with stepping through the indices one by one (virtio 1.2 §2.7.10.1).
func TestNeedEvent(t *testing.T) {
	for _, event := range []uint16{0, 1, 100, 0x7fff, 0x8000, 0xfffe, 0xffff} {
		for d := range 70 {
			for n := range 70 {
				old := event - 35 + uint16(d)
				new := old + uint16(n)
				want := false
				for i := old; i != new; i++ {
					want = want || i == event
				}
				if got := needEvent(event, new, old); got != want {
					t.Fatalf("needEvent(%d, %d, %d) = %v", event, new, old, got)
				}
			}
		}
	}
}

func TestDescriptorCodec(t *testing.T) {
	table := make([]byte, 64)
	want := descriptor{addr: 0x1122334455667788, len: 0x99aabbcc, flags: 0xddee, next: 0xff01}
	storeDesc(table, 2, want)
	if got := loadDesc(table, 2); got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	wire := [16]byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc, 0xbb, 0xaa, 0x99, 0xee, 0xdd, 0x01, 0xff}
	if [16]byte(table[32:48]) != wire {
		t.Fatalf("% x", table[32:48])
	}
}

func TestAtomics(t *testing.T) {
	b := []byte{1, 2, 3, 4, 5, 6}
	if v := load16(&b[2]); v != 0x0403 {
		t.Errorf("load16: %#x", v)
	}
	store16(&b[2], 0xa1b2)
	store8(&b[4], 0x77)
	fence()
	pause(0)
	pause(3)
	if want := [6]byte{1, 2, 0xb2, 0xa1, 0x77, 6}; [6]byte(b) != want {
		t.Errorf("% x, want % x", b, want)
	}
}
