package daemon

import (
	"io"
	"log/slog"
	"testing"
)

// TestEvents: every record becomes an event with its details, the newest are kept, and those who ask again get each once.
func TestEvents(t *testing.T) {
	e := newEvents()
	log := slog.New(eventHandler{Handler: slog.NewTextHandler(io.Discard, nil), events: e}).With("pid", 7)
	if list, _ := e.after(0); len(list) != 0 {
		t.Errorf("%v", list)
	}
	_, more := e.after(0)
	log.Warn("driver died", "driver", "blk0", "ms", 1.5)
	select {
	case <-more:
	default:
		t.Error("nobody was told")
	}
	list, _ := e.after(0)
	if len(list) != 1 || list[0].Seq != 1 || list[0].Event != "driver died" || list[0].Level != "WARN" || list[0].Details["driver"] != "blk0" ||
		list[0].Details["ms"] != "1.5" || list[0].Details["pid"] != "7" {
		t.Fatalf("%+v", list)
	}
	log.Debug("not said, not an event")
	const all = maxEvents + 10
	for range all - 1 {
		log.Info("more")
	}
	for _, c := range []struct {
		after uint64
		first uint64
		n     int
	}{{0, all - maxEvents + 1, maxEvents}, {all - maxEvents, all - maxEvents + 1, maxEvents}, {all - 3, all - 2, 3}, {all, 0, 0}, {all + 5, 0, 0}, {1 << 63, 0, 0}} {
		list, _ := e.after(c.after)
		if len(list) != c.n || c.n > 0 && list[0].Seq != c.first {
			t.Errorf("after %d: %d events, want %d from %d on", c.after, len(list), c.n, c.first)
		}
	}
}
