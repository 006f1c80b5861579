package serve

import (
	"testing"

	"github.com/grailos/grail/ring"
)

// A server that stands in serves any disk, asks no device, and fails every request.
func TestRefuse(t *testing.T) {
	r := newRig(t, 1, 16, 1<<20, testSize)
	s := New(nil, nil, ring.PollerConfig{})
	s.Refuse = true
	if err := s.Attach(r.client(t)); err != nil {
		t.Fatal(err)
	}
	defer run(t, s)()
	p := make([]byte, 4096)
	if n, err := r.disk.ReadAt(p, 0); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if n, err := r.disk.WriteAt(p, 4096); n != 0 || err == nil {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	if r.disk.Flush() == nil {
		t.Error("flushed")
	}
}
