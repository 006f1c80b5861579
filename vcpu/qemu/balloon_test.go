package qemu

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPopulate(t *testing.T) {
	const mib = 1 << 20
	ram, err := NewRAM("test", 64*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	allocated := func(want int64) {
		t.Helper()
		if n, err := Allocated(ram); err != nil || n != want {
			t.Errorf("%d bytes are allocated, %v; expected %d", n, err, want)
		}
	}
	allocated(0)
	var told []int64
	ctx := context.Background()
	if err := Populate(ctx, ram, 10*mib, func(n int64) { told = append(told, n) }); err != nil {
		t.Fatal(err)
	}
	allocated(10 * mib)
	if len(told) == 0 || told[len(told)-1] != 10*mib {
		t.Errorf("told %v", told)
	}
	// What a balloon has punched out is put back, as far as it is reserved.
	if err := unix.Fallocate(int(ram.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 2*mib, 4*mib); err != nil {
		t.Fatal(err)
	}
	allocated(6 * mib)
	if err := Populate(ctx, ram, 8*mib, nil); err != nil {
		t.Fatal(err)
	}
	if n, _ := Allocated(ram); n < 8*mib || n > 10*mib {
		t.Errorf("%d bytes are allocated of 8 MiB that are reserved", n)
	}
	if err := Populate(ctx, ram, 1<<40, nil); err != nil {
		t.Fatal(err)
	}
	allocated(64 * mib)
	over, cancel := context.WithCancel(ctx)
	cancel()
	fresh, err := NewRAM("fresh", 64*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if Populate(over, fresh, mib, nil) == nil {
		t.Error("populated after the context's end")
	}
}

// TestBalloon has a guest give memory back, and looks whether the host really has it.
func TestBalloon(t *testing.T) {
	const mib = 1 << 20
	ram, err := NewRAM("balloon", 256*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	g := boot(t, func(c *Config) { c.RAM, c.KeepFree = ram, true })
	g.ready()
	use := func() {
		t.Helper()
		if s := g.ask("use 96"); s != "done <nil>" {
			t.Errorf("the guest cannot use its memory: %s", s)
		}
	}
	use()
	before, err := Allocated(ram)
	if err != nil || before < 96*mib {
		t.Fatalf("%d bytes are allocated, %v", before, err)
	}
	ctx := context.Background()
	if kept, err := g.Ballooned(ctx); err != nil || kept != 256*mib {
		t.Errorf("a balloon that nobody asked for: %d kept, %v", kept, err)
	}
	const keep = 96 * mib
	if err := g.Balloon(ctx, keep); err != nil {
		t.Fatal(err)
	}
	until(t, 30*time.Second, "the guest to give", func() bool {
		kept, err := g.Ballooned(ctx)
		return err == nil && kept <= keep
	})
	if after, err := Allocated(ram); err != nil || after > keep {
		t.Errorf("%d bytes are allocated of %d before, %v; expected %d at most", after, before, err, int64(keep))
	}
	if err := g.Balloon(ctx, 256*mib); err != nil {
		t.Fatal(err)
	}
	until(t, 30*time.Second, "the guest to have it back", func() bool {
		kept, err := g.Ballooned(ctx)
		return err == nil && kept == 256*mib
	})
	use()
}
