package serve

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console/logfile"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/logring"
)

// Test logs a line from a ring of its own to a log of its own. It returns what is wrong. No client is attached.
func (s *Server) Test() error {
	mem, err := unix.Mmap(-1, 0, logring.MinBytes+logfile.MinBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	from, to := mem[:logring.MinBytes], mem[logring.MinBytes:]
	p, err := logring.NewProducer(from)
	if err != nil {
		return err
	}
	t := New(Config{Now: s.now})
	if err := t.Attach(1, LogConfig{Run: 1, Rate: MinRate, Burst: MinRate}, from, to, ring.DoorbellOf(-1)); err != nil {
		return err
	}
	line := []byte("a line to test\n")
	p.Put(line, time.Unix(1, 0))
	t.Detach(1)
	if len(t.Deaths) > 0 {
		return errors.New(t.Deaths[0].Reason)
	}
	r, err := logfile.NewReader(bytes.NewReader(to), int64(len(to)))
	if err == nil {
		err = r.Load()
	}
	if err != nil {
		return err
	}
	for rec := range r.Records() {
		if rec.Kind == logfile.Text && bytes.Equal(rec.Text, line) {
			return nil
		}
	}
	return errors.New("a line was not logged")
}
