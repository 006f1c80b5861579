package console

import (
	"fmt"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/drivervms/console/serve"
	"github.com/grailos/grail/ring/logring"
)

// RingBytes is the size of the ring between a VM and the driver: what a VM prints while the driver is away, as much as a burst.
const RingBytes = 4096 + DefaultBurst

// Defaults of a log's bounds.
const (
	DefaultLog   = 4 << 20   // size of a log's file, bytes
	DefaultRate  = 256 << 10 // bytes a second
	DefaultBurst = 1 << 20   // bytes at once
)

// An attachment has two regions: the ring, and the file of the log.
const (
	RegionRing = serve.RegionRing
	RegionLog  = serve.RegionLog
	LogBase    = 1 << 40 // the second one's base: beyond the first one
)

// AvailOffset and UsedOffset are where the attachment's one queue has its indices.
const (
	AvailOffset = logring.AvailOffset
	UsedOffset  = logring.UsedOffset
)

// CheckLog refuses a size that a log cannot have.
func CheckLog(bytes uint64) error {
	if bytes < logfile.MinBytes || bytes > logfile.MaxBytes || bytes%4096 != 0 {
		return fmt.Errorf("a log of %d bytes; give %d KiB to %d MiB, in steps of 4 KiB", bytes, logfile.MinBytes>>10, logfile.MaxBytes>>20)
	}
	return nil
}

// CheckRate refuses a rate that a log cannot have.
func CheckRate(bytes uint64) error {
	if bytes < serve.MinRate || bytes > serve.MaxRate {
		return fmt.Errorf("a rate of %d bytes a second; give %d to %d GiB", bytes, serve.MinRate, serve.MaxRate>>30)
	}
	return nil
}

// AttachText returns the configuration of an attachment: the run that writes to the ring, and how many bytes a second it may log.
func AttachText(run, rate uint64) (string, error) {
	return serve.LogConfig{Run: run, Rate: rate, Burst: max(rate, DefaultBurst)}.Text()
}
