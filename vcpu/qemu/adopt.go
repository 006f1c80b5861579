package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Adopt takes over the machine that runs in dir, whoever started it. A machine that is at its end is returned, too; its
// Wait says why. A context without a deadline gets 10 seconds. Errors: ErrGone, ErrInUse, those of ctx.
func Adopt(ctx context.Context, dir string) (*VM, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, commandTimeout)
		defer cancel()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, err := loadState(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && s.Boot != bootID() {
		return nil, fmt.Errorf("%w: %s", ErrGone, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("qemu: the state in %s: %w", dir, err)
	}
	v := newVM(dir, &Log{})
	v.state = *s
	v.state.Devices = nil
	if v.pidfd, err = lifeline(s.PID, s.Started); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrGone, s.Name, err)
	}
	for _, ds := range s.Devices {
		d := newDevice(ds)
		// If there is none, it is made anew by Relink.
		d.link, _ = inodeOf(filepath.Join(dir, runDir, d.id))
		v.devices[d.id] = d
	}
	if err := v.reconnect(ctx); err != nil {
		v.pidfd.Close()
		return nil, err
	}
	go v.watch()
	go v.relink()
	if err := v.missed(ctx); err != nil {
		select {
		case <-v.ended: // in between
		default:
			v.Detach()
			return nil, err
		}
	}
	return v, nil
}

// reconnect begins the conversation anew.
func (v *VM) reconnect(ctx context.Context) error {
	d, err := os.Open(v.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), qmpSocket))
	if err != nil {
		return fmt.Errorf("qemu: adopt %s: %w", v.Name(), err)
	}
	v.client = newClient(conn, v.log, v.onEvent)
	if err := v.client.greet(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			// QEMU serves one conversation at a time, and lets others wait.
			return fmt.Errorf("%w: %s: %w", ErrInUse, v.Name(), err)
		}
		return fmt.Errorf("qemu: adopt %s: %w", v.Name(), err)
	}
	return nil
}

// missed finds out what has happened while nobody controlled the machine.
func (v *VM) missed(ctx context.Context) error {
	var have []struct {
		Name string `json:"name"`
	}
	if err := v.Run(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"}, &have); err != nil {
		return err
	}
	there := map[string]bool{}
	for _, h := range have {
		there[ourDevice(h.Name)] = true
	}
	for _, d := range v.Disks() {
		if !there[d.ID] {
			v.deviceGone(d.ID)
		}
	}
	for _, n := range v.NICs() {
		if !there[n.ID] {
			v.deviceGone(n.ID)
		}
	}
	s, err := v.Status(ctx)
	if err != nil {
		return err
	}
	if cause, detail, ok := stateCause(s.State); ok && v.because(cause, detail) {
		go v.quit()
	}
	return nil
}
