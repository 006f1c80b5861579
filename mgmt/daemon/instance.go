package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/place"
)

// How long a grailvm may take over an answer.
const (
	callTimeout   = 5 * time.Second   // status, messages, attachments
	attachTimeout = 10 * time.Second  // waits for a driver that is starting
	detachTimeout = 2 * time.Second   // until what is in flight is done; then the memory is revoked
	startPatience = 4 * attachTimeout // of a VM that starts with each of its drivers, which may be found out to hang just then, and replaced
)

// instance is one run of a VM: a grailvm process and what graild holds of it.
type instance struct {
	name       string
	generation int // of a VM's run, or the number of a driver's process
	engine     hv.Engine
	proc       *hv.Process
	socket     string
	report     string
	launched   time.Time
	ended      chan struct{} // closed when the process is gone
	output     *output       // its console, on the way to the console driver; nil: it goes to files
}

// role is what a process tag says about its VM.
type role string

const (
	roleVM     role = "vm"
	roleDriver role = "driver"
)

// tag names a run for ever, on this host.
func (d *Daemon) tag(r role, name string, generation int) string {
	return strings.Join([]string{"grail", d.store.ID, string(r), name, strconv.Itoa(generation)}, ":")
}

func (d *Daemon) socketPath(name string, generation int) string {
	return filepath.Join(d.dirs.Sockets(), name+"."+strconv.Itoa(generation))
}

func (d *Daemon) reportPath(name string, generation int) string {
	return filepath.Join(d.dirs.VM(name), "report."+strconv.Itoa(generation)+".json")
}

// slots are the sets of logs of one VM: a driver and its spare write at the same time.
const slots = 2

// logPaths returns the two console logs of a slot.
func (d *Daemon) logPaths(name string, slot int) [2]string {
	dir := d.dirs.VM(name)
	return [2]string{filepath.Join(dir, fmt.Sprintf("console.%d.0", slot)), filepath.Join(dir, fmt.Sprintf("console.%d.1", slot))}
}

// vmmLog returns the path of what the VM's process itself says.
func (d *Daemon) vmmLog(name string, slot int) string {
	return filepath.Join(d.dirs.VM(name), fmt.Sprintf("vmm.%d.log", slot))
}

// slotOf returns the slot of a run: a VM has one, a driver's processes take turns.
func slotOf(r role, generation int) int {
	switch r {
	case roleDriver:
		return generation % slots
	case roleStandIn:
		return slots
	}
	return 0
}

// launch completes l with what every VM has and starts it. fresh empties the console logs first. Files that l was given
// stay the caller's.
func (d *Daemon) launch(l *hv.Launch, r role, generation int, fresh bool) (*instance, error) {
	name := l.Spec.Name
	dir := d.dirs.VM(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	open := func(path string, flags int) (int, error) {
		f, err := os.OpenFile(path, flags|os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return -1, err
		}
		opened = append(opened, f)
		return l.Add(f), nil
	}
	inst := &instance{
		name: name, generation: generation, engine: l.Spec.Engine,
		socket: d.socketPath(name, generation), report: d.reportPath(name, generation),
		ended: make(chan struct{}),
	}
	logFlags := 0
	if fresh {
		logFlags = os.O_TRUNC
	}
	slot := slotOf(r, generation)
	var err error
	if r != roleStandIn { // which has nothing to say
		if inst.output, err = d.newOutput(r, name, generation, inst.ended); err != nil {
			return nil, err
		}
	}
	defer func() {
		if inst.proc == nil && inst.output != nil {
			d.dropOutput(inst.output)
		}
	}()
	if inst.output != nil {
		inst.output.addTo(l)
	}
	for i, p := range d.logPaths(name, slot) {
		if inst.output != nil || r == roleStandIn {
			if fresh {
				_ = os.Remove(p)
			}
			continue
		}
		if l.Spec.Log[i], err = open(p, logFlags); err != nil {
			return nil, err
		}
	}
	if l.Spec.Report, err = open(inst.report, os.O_TRUNC); err != nil {
		return nil, err
	}
	stderr, err := os.OpenFile(d.vmmLog(name, slot), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	opened = append(opened, stderr)
	l.Stderr = stderr

	var listener *os.File
	err = place.WithSocket(inst.socket, func(short string) (err error) {
		if err := os.Remove(short); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		listener, err = hv.Listen(short)
		return err
	})
	if err != nil {
		return nil, err
	}
	opened = append(opened, listener)
	l.Spec.Control = l.Add(listener)
	l.Tag = d.tag(r, name, generation)

	inst.proc, err = l.Start()
	if err != nil {
		_ = os.Remove(inst.socket)
		if errors.Is(err, hv.ErrNamespaces) {
			err = fmt.Errorf("%w; run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone, "+
				"kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces)", err)
		}
		return nil, err
	}
	inst.launched = time.Now()
	inst.watch()
	if inst.output != nil {
		d.background.Go(func() { d.keep(inst.output) })
	}
	return inst, nil
}

// watch closes ended when the process is gone.
func (i *instance) watch() {
	go func() {
		defer close(i.ended)
		if err := i.proc.Wait(0); err != nil {
			// The pidfd cannot fail to be waited for; if it does, polling still tells.
			for !i.proc.Ended() {
				time.Sleep(100 * time.Millisecond)
			}
		}
	}()
}

// gone reports whether the process has ended.
func (i *instance) gone() bool {
	select {
	case <-i.ended:
		return true
	default:
		return false
	}
}

// call makes one request on a connection of its own. Descriptors that come back are the caller's, also with an error.
func (i *instance) call(req hv.Request, timeout time.Duration, fds ...int) (resp hv.Response, got []int, err error) {
	if i.gone() {
		return resp, nil, hv.ErrClosed
	}
	var conn *hv.Conn
	err = place.WithSocket(i.socket, func(short string) (err error) {
		conn, err = hv.Dial(short)
		return err
	})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return resp, nil, hv.ErrClosed // its process is ending
	}
	if err != nil {
		return resp, nil, err
	}
	defer conn.Close()
	if err := conn.SetTimeout(timeout); err != nil {
		return resp, nil, err
	}
	resp, got, err = conn.Call(req, fds...)
	if errors.Is(err, unix.EAGAIN) {
		err = errTimeout
	}
	return resp, got, err
}

// errTimeout reports a grailvm that did not answer in time.
var errTimeout = errors.New("the VM's process did not answer in time")

// status asks the VM how it is.
func (i *instance) status(timeout time.Duration) (*hv.Status, error) {
	resp, fds, err := i.call(hv.Request{Op: hv.OpStatus}, timeout)
	closeFDs(fds)
	if err != nil {
		return nil, err
	}
	if resp.Status == nil {
		return nil, errors.New("the VM's process answered without a status")
	}
	return resp.Status, nil
}

// end kills the process and returns when nothing that it began can take effect any more.
func (i *instance) end() {
	_ = i.proc.Kill()
	<-i.ended
}

// close gives up what graild holds of an ended instance, except its report.
func (i *instance) close() {
	i.proc.Close()
	_ = os.Remove(i.socket)
}

// maxReport bounds a report file, in bytes.
const maxReport = 4 << 20

// readReport returns a run's last word, or one made up for a process that was killed.
func readReport(path, name string) *hv.Report {
	killed := &hv.Report{Name: name, Cause: hv.CauseKilled, Ended: time.Now(), Message: "the VM's process was killed from outside"}
	st, err := os.Stat(path)
	if err != nil || st.Size() == 0 || st.Size() > maxReport {
		return killed
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return killed
	}
	r := &hv.Report{}
	if err := json.Unmarshal(b, r); err != nil || r.Cause == "" {
		return killed
	}
	return r
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// vmmError returns the last line that the VM's process itself said, to explain an end without a report.
func (d *Daemon) vmmError(r role, name string, generation int) string {
	b, err := os.ReadFile(d.vmmLog(name, slotOf(r, generation)))
	if err != nil || len(b) == 0 {
		return ""
	}
	const most = 400
	lines := strings.Split(strings.TrimSpace(string(b[:min(len(b), most)])), "\n")
	return lines[0]
}
