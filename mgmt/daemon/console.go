package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/console"
	"github.com/grailos/grail/hv"
)

// How consoles are brought to their driver.
const (
	// consoleDelay is how long after its start a VM's console is attached, and after its end detached: the work for that shall not compete with the
	// start, of the VM or of its successor. The ring holds what is printed meanwhile, also when the VM has ended by then.
	consoleDelay = 150 * time.Millisecond
	// consolePatience is how long the ring of a VM that has ended is kept for a driver that does not come.
	consolePatience = time.Minute
	// logRetry is how often the file of a log is tried to be made, on a disk that is full, perhaps.
	logRetry = 5 * time.Second
	// consoleDevice is Disk of a console's attachment.
	consoleDevice = "console"
)

// output is the console of one run: the ring that its process writes to, on its way to the console driver. It outlives the run until all of it is logged.
type output struct {
	client *client
	path   string          // of the log
	prev   *output         // of the run before, which writes to the same log, or nil
	create bool            // it may have a driver made
	ended  <-chan struct{} // closed when the run has ended
	hurry  chan struct{}   // somebody wants to see the log
	served chan struct{}   // closed when a driver has it
	done   chan struct{}   // closed when all is logged, or given up

	hurryOnce, serveOnce sync.Once
	removed              atomic.Bool // the log is not wanted any more
}

func (o *output) hasten() { o.hurryOnce.Do(func() { close(o.hurry) }) }

// newOutput makes the ring for a run's console; nil and no error where consoles go to files.
func (d *Daemon) newOutput(r role, name string, generation int, ended <-chan struct{}) (*output, error) {
	if !consolesWanted() {
		return nil, nil
	}
	if dr, err := d.driver(name); err == nil && r == roleDriver && dr.rec.Config.Type == typeConsole {
		return nil, nil // its own goes to files
	}
	id, err := d.store.NextID()
	if err != nil {
		return nil, err
	}
	memory, err := hv.NewMemory("grail-console", console.RingBytes)
	if err != nil {
		return nil, err
	}
	kick, err := hv.NewDoorbell()
	if err != nil {
		memory.Close()
		return nil, err
	}
	c, err := newClient(hv.Attachment{ID: id, Client: name, Disk: consoleDevice, Log: -1,
		Regions: []hv.AttachMem{{FD: 0, Size: console.RingBytes}},
		Queues:  []hv.AttachRing{{Kick: 1, Call: -1, Avail: console.AvailOffset, Used: console.UsedOffset}},
	}, []*os.File{memory, kick})
	if err != nil {
		memory.Close()
		kick.Close()
		return nil, err
	}
	return d.outputOf(c, r, generation, ended), nil
}

// outputOf takes note of the client's end of a console. Later instances of drivers have no console driver made: it may be that everything is just being removed.
func (d *Daemon) outputOf(c *client, r role, generation int, ended <-chan struct{}) *output {
	o := &output{client: c, ended: ended, path: d.logPath(c.att.Client, slotOf(r, generation)), create: r == roleVM || generation <= 1,
		hurry: make(chan struct{}), served: make(chan struct{}), done: make(chan struct{})}
	d.mu.Lock()
	o.prev = d.outputs[o.path]
	d.outputs[o.path] = o
	d.mu.Unlock()
	return o
}

// addTo puts the console into the Spec that l starts.
func (o *output) addTo(l *hv.Launch) {
	l.Spec.Console = &hv.ConsoleRing{Memory: l.Add(o.client.files[0]), Size: console.RingBytes, Kick: l.Add(o.client.files[1])}
	l.Spec.Attachments = append(l.Spec.Attachments, o.client.inSpec(l))
}

// isConsole reports whether a VM's process has kept a for its console.
func isConsole(a *hv.Attachment) bool {
	return a.Disk == consoleDevice && a.Driver == "" && len(a.Regions) == 1 && len(a.Queues) == 1
}

// adoptOutput takes a run's console out of what its process has kept, and returns the rest.
func (d *Daemon) adoptOutput(inst *instance, r role, list []*client) []*client {
	var rest []*client
	for _, c := range list {
		if inst.output != nil || !isConsole(&c.att) {
			rest = append(rest, c)
			continue
		}
		c.att.Client = inst.name
		inst.output = d.outputOf(c, r, inst.generation, inst.ended)
		inst.output.create = false
	}
	return rest
}

// resumeOutputs goes on with adopted consoles. Those that the console driver serves already are counted among its clients before it starts to look who they
// are; the function that is returned is called after that.
func (d *Daemon) resumeOutputs(adopted []*instance) (begin func()) {
	for _, dr := range d.drivers {
		if dr.rec.Config.Type != typeConsole {
			continue
		}
		for _, i := range adopted {
			if err := d.addLog(i.output, dr); err != nil {
				d.log.Error("adopt: console log", "vm", i.name, "error", err)
				continue
			}
			dr.own(i.output.client)
		}
	}
	return func() {
		for _, i := range adopted {
			i.output.hasten()
			d.background.Go(func() { d.keep(i.output) })
		}
	}
}

// keep sees that what a run prints is logged, until the run has ended and all of it is.
func (d *Daemon) keep(o *output) {
	defer d.dropOutput(o)
	ctx, cancel := d.outputContext(o)
	defer cancel()
	select {
	case <-time.After(consoleDelay):
	case <-o.hurry:
	case <-d.closing:
		return
	}
	if o.prev != nil {
		select {
		case <-o.prev.done:
		case <-d.closing:
			return
		}
		o.prev = nil
	}
	for !o.removed.Load() {
		dr, err := d.consoleDriver(ctx, o.create)
		if err != nil {
			d.giveUp(o, err)
			return
		}
		if err := d.addLog(o, dr); err != nil {
			d.log.Warn("console log", "vm", o.client.att.Client, "error", err)
			select {
			case <-time.After(logRetry):
				continue
			case <-ctx.Done():
				return
			}
		}
		if err := dr.attach(ctx, o.client); err != nil {
			if dr.isStopped() {
				o.create = false // it was removed
				continue
			}
			d.giveUp(o, err)
			return
		}
		o.serveOnce.Do(func() { close(o.served) })
		select {
		case <-o.ended:
			// What it printed last is logged without that. If it is a driver that has died, its clients wait for the next one, which shall not
			// share the processors with this.
			select {
			case <-time.After(consoleDelay):
			case <-o.hurry:
			case <-d.closing:
				return
			}
			dr.detach(o.client)
			d.finishLog(o, dr)
			return
		case <-dr.stopped:
			o.create = false
		case <-d.closing:
			return
		}
	}
}

// outputContext returns a context that ends with graild, and some time after the run.
func (d *Daemon) outputContext(o *output) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		select {
		case <-o.ended:
		case <-o.done:
			return
		case <-d.closing:
			return
		}
		t := time.NewTimer(consolePatience)
		defer t.Stop()
		select {
		case <-t.C:
		case <-o.done:
		case <-d.closing:
		}
	}()
	return ctx, cancel
}

func (d *Daemon) giveUp(o *output, err error) {
	select {
	case <-d.closing:
	default:
		d.log.Warn("what a VM printed last is not logged", "vm", o.client.att.Client, "error", err)
	}
}

// dropOutput forgets a console.
func (d *Daemon) dropOutput(o *output) {
	d.mu.Lock()
	if d.outputs[o.path] == o {
		delete(d.outputs, o.path)
	}
	d.mu.Unlock()
	if o.removed.Load() {
		_ = os.Remove(o.path)
	}
	o.client.close()
	close(o.done)
}

// addLog makes or opens the file of the log and puts it and the driver's terms into the attachment, unless they are there.
func (d *Daemon) addLog(o *output, dr *driver) error {
	cfg := dr.rec.Config.Console
	c := o.client
	text, err := console.AttachText(c.att.ID, cfg.Rate)
	if err != nil {
		return err
	}
	c.att.Driver, c.att.Config = dr.name(), text
	if len(c.att.Regions) > console.RegionLog {
		return nil
	}
	f, size, err := openLog(o.path, cfg.LogBytes)
	if err != nil {
		return err
	}
	c.files, c.kinds = append(c.files, f), append(c.kinds, otherFile)
	c.att.Regions = append(c.att.Regions, hv.AttachMem{FD: len(c.files) - 1, Base: console.LogBase, Size: size})
	return nil
}

// openLog opens the file of a log, which it makes with size bytes if there is none, and has the host set aside its blocks: the driver maps it, and cannot
// be told that the disk is full.
func openLog(path string, size uint64) (f *os.File, has uint64, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, 0, err
	}
	if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && console.CheckLog(uint64(st.Size())) == nil {
		size = uint64(st.Size())
	} else if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, int64(size))
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = f.Truncate(int64(size))
	}
	if err != nil {
		f.Close()
		if st != nil && st.Size() == 0 {
			_ = os.Remove(path)
		}
		return nil, 0, fmt.Errorf("log %s: %w", path, err)
	}
	return f, size, nil
}

// logPath returns the path of the log of a VM's or a driver's slot.
func (d *Daemon) logPath(name string, slot int) string {
	return filepath.Join(d.dirs.Logs(), name+"."+strconv.Itoa(slot))
}

// consolesWanted reports whether there is a program for a console driver, and nobody has set GRAIL_CONSOLE to "files".
func consolesWanted() bool {
	return os.Getenv("GRAIL_CONSOLE") != "files" && consoleProgram() == nil
}
