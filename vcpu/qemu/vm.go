package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	goqemu "github.com/digitalocean/go-qemu/qemu"
	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// quitTimeout is how long QEMU has to end after it was told to, before it is killed.
const quitTimeout = 5 * time.Second

// VM is a running machine. It is safe for concurrent use.
type VM struct {
	dir     string
	log     *Log
	client  *client
	process *os.Process // nil: adopted
	pidfd   *os.File    // readable when QEMU has ended

	mu      sync.Mutex // guards what follows
	state   state      // without Devices, which are made of devices
	devices map[string]*device
	cause   Cause // why the machine ends; "" while it does not
	detail  string

	plugging sync.Mutex // held while devices come
	ended    chan struct{}
	end      End           // once ended is closed
	detached chan struct{} // closed by Detach
	detach   sync.Once
}

func newVM(dir string, log *Log) *VM {
	return &VM{dir: dir, log: log, devices: map[string]*device{},
		ended: make(chan struct{}), detached: make(chan struct{})}
}

// Name returns the machine's name.
func (v *VM) Name() string { return v.state.Name }

// PID returns QEMU's process number.
func (v *VM) PID() int { return v.state.PID }

// Machine returns the machine's type.
func (v *VM) Machine() Machine { return v.state.Machine }

// Accel returns how QEMU executes the guest: KVM or TCG.
func (v *VM) Accel() Accel { return v.state.Accel }

// Log returns the conversation with QEMU.
func (v *VM) Log() []Entry { return v.log.Entries() }

// Stderr returns the last lines that QEMU said, at most 4 KiB.
func (v *VM) Stderr() string { return lastWords(v.dir) }

// Events returns QEMU's events from now on. A reader that falls behind by more than 256 loses the oldest. The
// channel is closed when ctx ends, or the machine, or after Detach.
func (v *VM) Events(ctx context.Context) <-chan qmp.Event { return v.client.events(ctx) }

// Domain returns the machine as go-qemu sees it. The caller closes it. Its events must be read.
func (v *VM) Domain() (*goqemu.Domain, error) {
	return goqemu.NewDomain(monitor{v.client}, v.state.Name)
}

// Run sends a QMP command and decodes QEMU's answer into reply, unless that is nil. A context without a deadline
// gets 10 seconds. Errors: *CommandError, ErrClosed, ErrProtocol, those of ctx.
func (v *VM) Run(ctx context.Context, command string, args, reply any) error {
	return v.client.run(ctx, command, args, reply)
}

// Status is the machine's state in QEMU's words (QAPI RunState): "prelaunch" before the first instruction, "running",
// "paused", ...
type Status struct {
	State   string `json:"status"`
	Running bool   `json:"running"`
}

// Status asks QEMU for the machine's state.
func (v *VM) Status(ctx context.Context) (Status, error) {
	var s Status
	err := v.Run(ctx, "query-status", nil, &s)
	s.State = cut(s.State)
	return s, err
}

// Pause stops the guest's CPUs.
func (v *VM) Pause(ctx context.Context) error { return v.Run(ctx, "stop", nil, nil) }

// Resume lets the guest's CPUs run: after Pause, and after a start with Config.Paused.
func (v *VM) Resume(ctx context.Context) error { return v.Run(ctx, "cont", nil, nil) }

// Powerdown presses the machine's power button. The guest may take it as a request to power off, or not.
func (v *VM) Powerdown(ctx context.Context) error { return v.Run(ctx, "system_powerdown", nil, nil) }

// Quit ends QEMU at once, like a power cut, and waits until it is gone; a QEMU that does not obey is killed after 5
// seconds. Errors: those of ctx.
func (v *VM) Quit(ctx context.Context) error {
	go v.quit()
	select {
	case <-v.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quit tells QEMU to end, and sees to it.
func (v *VM) quit() {
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	// QEMU may go before it answers.
	_ = v.Run(ctx, "quit", nil, nil)
	select {
	case <-v.ended:
	case <-v.detached:
	case <-ctx.Done():
		_ = v.Kill()
	}
}

// Kill ends QEMU with SIGKILL. It does not wait. A machine that has ended is no error.
func (v *VM) Kill() error {
	v.because(Killed, "VM.Kill")
	return v.signal(unix.SIGKILL)
}

func (v *VM) signal(s unix.Signal) error {
	c, err := v.pidfd.SyscallConn()
	if err != nil {
		return nil // closed: QEMU has ended
	}
	var sent error
	if c.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) }) != nil || errors.Is(sent, unix.ESRCH) {
		return nil
	}
	if sent != nil {
		return fmt.Errorf("qemu: signal process %d: %w", v.PID(), sent)
	}
	return nil
}

// because notes why the machine ends; the first reason counts.
func (v *VM) because(c Cause, detail string) (first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cause != "" {
		return false
	}
	v.cause, v.detail = c, detail
	return true
}

// Wait waits until QEMU has ended and says why. Errors: those of ctx, and ErrClosed after Detach.
func (v *VM) Wait(ctx context.Context) (End, error) {
	select {
	case <-v.ended:
		return v.end, nil
	default:
	}
	select {
	case <-v.ended:
		return v.end, nil
	case <-v.detached:
		return End{}, ErrClosed
	case <-ctx.Done():
		return End{}, context.Cause(ctx)
	}
}

// Done returns a channel that is closed when QEMU has ended.
func (v *VM) Done() <-chan struct{} { return v.ended }

// Detach lets go of the machine, which runs on, for another process to Adopt. The VM is of no use afterwards.
func (v *VM) Detach() {
	v.detach.Do(func() {
		close(v.detached)
		v.client.close(fmt.Errorf("%w: detached", ErrClosed))
		_ = v.pidfd.SetReadDeadline(time.Unix(1, 0))
	})
}

// onEvent is called for each event, in order.
func (v *VM) onEvent(m message) {
	switch m.Event {
	case "SHUTDOWN":
		var d struct {
			Guest  bool   `json:"guest"`
			Reason string `json:"reason"`
		}
		_ = json.Unmarshal(m.Data, &d)
		if v.because(guestCause(d.Reason)) && d.Guest {
			go v.quit()
		}
	case "GUEST_PANICKED":
		if v.because(Panic, "the guest's kernel panicked") {
			go v.quit()
		}
	case "STOP":
		go v.checkState()
	case "DEVICE_DELETED":
		var d struct {
			Device string `json:"device"`
		}
		_ = json.Unmarshal(m.Data, &d)
		v.deviceGone(ourDevice(d.Device))
	case "DEVICE_UNPLUG_GUEST_ERROR":
		var d struct {
			Device string `json:"device"`
		}
		_ = json.Unmarshal(m.Data, &d)
		v.deviceRefused(ourDevice(d.Device))
	}
}

// checkState ends the machine if it is in a state from which the guest does not run on.
func (v *VM) checkState() {
	s, err := v.Status(context.Background())
	if err != nil {
		return
	}
	if cause, detail, ok := stateCause(s.State); ok && v.because(cause, detail) {
		v.quit()
	}
}

// watch waits for QEMU's end.
func (v *VM) watch() {
	c, err := v.pidfd.SyscallConn()
	if err == nil {
		err = c.Read(func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, 0)
			return err == nil && n > 0
		})
	}
	if err != nil { // Detach
		if v.process != nil {
			// Still its parent: reap it when it goes.
			go v.process.Wait()
		}
		v.pidfd.Close()
		return
	}
	// What QEMU said last is in the socket, which is at its end now; the reader gets there on its own.
	select {
	case <-v.client.closed:
	case <-time.After(time.Second):
		v.client.close(fmt.Errorf("%w: QEMU has ended", ErrClosed))
	}
	e := End{ExitCode: -1, Signal: -1}
	if v.process != nil {
		if ps, err := v.process.Wait(); err == nil {
			if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				e.Signal = int(ws.Signal())
			} else {
				e.ExitCode = ps.ExitCode()
			}
		}
	}
	v.mu.Lock()
	e.Cause, e.Detail = v.cause, v.detail
	v.mu.Unlock()
	e.Stderr = lastWords(v.dir)
	if e.Cause == "" {
		e.Cause, e.Detail = Crash, "QEMU ended without a reason"
		switch {
		case e.Signal == int(unix.SIGKILL):
			e.Cause, e.Detail = Killed, "signal SIGKILL"
		case e.Signal >= 0:
			e.Detail = "QEMU died of " + unix.SignalName(syscall.Signal(e.Signal))
		case e.ExitCode == jailFailed:
			e.Detail = "QEMU's jail could not be set up"
		case e.ExitCode >= 0:
			e.Detail = fmt.Sprintf("QEMU ended with status %d", e.ExitCode)
		}
	}
	v.end = e
	v.pidfd.Close()
	v.tidy()
	close(v.ended)
}

// tidy removes what is of no use without QEMU.
func (v *VM) tidy() {
	for _, name := range []string{qmpSocket, stateFile} {
		_ = os.Remove(filepath.Join(v.dir, name))
	}
	_ = os.RemoveAll(filepath.Join(v.dir, runDir))
	_ = os.Remove(filepath.Join(v.dir, rootDir))
}
