package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// unplugTimeout is how long a guest has to release a device when the context has no deadline. With native hot-plug
// Linux takes 5 seconds and something.
const unplugTimeout = 20 * time.Second

// Errors of plugging and unplugging.
var (
	// ErrBusy reports a device that the guest has not released: it is in use, or the guest is not one that knows
	// hot-plug. The request stands; the device may go later.
	ErrBusy = errors.New("qemu: the guest does not release the device")
	// ErrNoDevice reports an unknown disk or network card.
	ErrNoDevice = errors.New("qemu: no such device")
	// ErrExists reports a device whose name is taken.
	ErrExists = errors.New("qemu: a device of that name exists")
	// ErrNoSlot reports that all of the machine's slots are taken.
	ErrNoSlot = errors.New("qemu: no free slot")
)

// device is a disk or a network card that is plugged, or about to be. VM.mu guards its fields but those that say so.
type device struct {
	id     string
	socket string
	deviceState
	link    inode // of the socket that QEMU can reach
	refused chan struct{}
	gone    chan struct{} // closed when the guest has released it
	cleaned chan struct{} // closed when QEMU has forgotten it
	isGone  bool
}

// inode names a file.
type inode struct{ dev, ino uint64 }

func newDevice(s deviceState) *device {
	d := &device{deviceState: s, refused: make(chan struct{}, 1), gone: make(chan struct{}), cleaned: make(chan struct{})}
	if s.Disk != nil {
		d.id, d.socket = s.Disk.ID, s.Disk.Socket
	} else {
		d.id, d.socket = s.NIC.ID, s.NIC.Socket
	}
	return d
}

// AddDisk plugs a disk into the running machine. Errors: ErrConfig, ErrExists, ErrNoSlot, *CommandError, those of ctx.
func (v *VM) AddDisk(ctx context.Context, d Disk) error {
	if err := d.check(); err != nil {
		return err
	}
	return v.plug(ctx, deviceState{Disk: &d})
}

// AddNIC plugs a network card into the running machine. Errors: as AddDisk.
func (v *VM) AddNIC(ctx context.Context, n NIC) error {
	if err := n.check(); err != nil {
		return err
	}
	return v.plug(ctx, deviceState{NIC: &n})
}

// RemoveDisk unplugs a disk: it asks the guest to release it, waits until it has, and disconnects the back end. A context
// without a deadline gets 20 seconds. Errors: ErrNoDevice, ErrBusy, ErrClosed, those of ctx other than its deadline.
func (v *VM) RemoveDisk(ctx context.Context, id string) error {
	return v.unplug(ctx, id, func(d *device) bool { return d.Disk != nil })
}

// RemoveNIC unplugs a network card, as RemoveDisk does a disk.
func (v *VM) RemoveNIC(ctx context.Context, id string) error {
	return v.unplug(ctx, id, func(d *device) bool { return d.NIC != nil })
}

// Disks returns the disks that are plugged, by ID.
func (v *VM) Disks() []Disk {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []Disk
	for _, d := range v.devices {
		if d.Disk != nil {
			out = append(out, *d.Disk)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// NICs returns the network cards that are plugged, by ID.
func (v *VM) NICs() []NIC {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []NIC
	for _, d := range v.devices {
		if d.NIC != nil {
			out = append(out, *d.NIC)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// reserve takes a slot for a device.
func (v *VM) reserve(s deviceState) (*device, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := newDevice(s)
	if v.devices[d.id] != nil {
		return nil, fmt.Errorf("%w: %s", ErrExists, d.id)
	}
	taken := map[int]bool{}
	for _, have := range v.devices {
		taken[have.Slot] = true
	}
	for d.Slot = 0; taken[d.Slot]; {
		d.Slot++
	}
	if d.Slot >= v.state.Slots {
		return nil, fmt.Errorf("%w for %s: the machine has %d", ErrNoSlot, d.id, v.state.Slots)
	}
	v.devices[d.id] = d
	return d, nil
}

func (v *VM) plug(ctx context.Context, s deviceState) (err error) {
	v.plugging.Lock()
	defer v.plugging.Unlock()
	d, err := v.reserve(s)
	if err != nil {
		return err
	}
	if d.link, err = v.linkSocket(d.id, d.socket); err != nil {
		v.forget(d)
		return err
	}
	// What was done is undone in a context of its own: ctx may be why it has to be.
	undo := func(command string, id string) {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		_ = v.Run(ctx, command, map[string]any{"id": id}, nil)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("qemu: plug %s: %w", d.id, err)
			v.forget(d)
		}
	}()
	path := socketPath(v.dir, v.state.NoJail, d.id)
	backend := map[string]any{"type": "socket", "data": map[string]any{
		"addr": map[string]any{"type": "unix", "data": map[string]any{"path": path}}, "server": false, "reconnect": 1}}
	if err := v.Run(ctx, "chardev-add", map[string]any{"id": chardevID(d.id), "backend": backend}, nil); err != nil {
		return err
	}
	props := []property(nil)
	if d.Disk != nil {
		props = d.Disk.device(slotName(d.Slot))
	} else {
		if err := v.Run(ctx, "netdev_add", object(d.NIC.netdev()), nil); err != nil {
			undo("chardev-remove", chardevID(d.id))
			return err
		}
		props = d.NIC.device(slotName(d.Slot), v.state.Accel)
	}
	if err := v.Run(ctx, "device_add", object(props), nil); err != nil {
		if d.NIC != nil {
			undo("netdev_del", netdevID(d.id))
		}
		undo("chardev-remove", chardevID(d.id))
		return err
	}
	return v.save()
}

func (v *VM) unplug(ctx context.Context, id string, kind func(*device) bool) error {
	v.mu.Lock()
	d := v.devices[id]
	v.mu.Unlock()
	if d == nil || !kind(d) {
		return fmt.Errorf("%w: %s", ErrNoDevice, id)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, unplugTimeout)
		defer cancel()
	}
	select {
	case <-d.refused: // an earlier request
	default:
	}
	begin := time.Now()
	if err := v.Run(ctx, "device_del", map[string]any{"id": deviceID(id)}, nil); err != nil {
		var refused *CommandError
		if !errors.As(err, &refused) {
			return fmt.Errorf("qemu: unplug %s: %w", id, err)
		}
		// Asked before, and pending; or gone in this moment, of which there is an event.
		if refused.Class != "DeviceNotFound" && !pendingUnplug(refused) {
			return fmt.Errorf("qemu: unplug %s: %w", id, err)
		}
	}
	select {
	case <-d.cleaned:
		return nil
	case <-d.refused:
		return fmt.Errorf("%w: %s: the guest refused", ErrBusy, id)
	case <-v.client.closed:
		return fmt.Errorf("qemu: unplug %s: %w", id, ErrClosed)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("%w: %s: no answer in %v", ErrBusy, id, time.Since(begin).Round(time.Millisecond))
		}
		return context.Cause(ctx)
	}
}

// pendingUnplug reports whether QEMU refused a request to unplug because there was one before.
func pendingUnplug(e *CommandError) bool {
	return strings.Contains(e.Desc, "already in the process of unplug")
}

// deviceGone is called when the guest has released a device, asked or not.
func (v *VM) deviceGone(id string) {
	v.mu.Lock()
	d := v.devices[id]
	if d == nil || d.isGone {
		v.mu.Unlock()
		return
	}
	d.isGone = true
	close(d.gone)
	v.mu.Unlock()
	go v.clean(d)
}

func (v *VM) deviceRefused(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if d := v.devices[id]; d != nil {
		select {
		case d.refused <- struct{}{}:
		default:
		}
	}
}

// clean disconnects the back end of a device that is gone.
func (v *VM) clean(d *device) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	// The device's memory is freed a moment after the event; until then its parts are in use.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	remove := func(command, id string) {
		for {
			err := v.Run(ctx, command, map[string]any{"id": id}, nil)
			var refused *CommandError
			if err == nil || !errors.As(err, &refused) || !(strings.Contains(refused.Desc, "busy") || strings.Contains(refused.Desc, "in use")) {
				return
			}
			select {
			case <-again.C:
			case <-ctx.Done():
				return
			}
		}
	}
	if d.NIC != nil {
		remove("netdev_del", netdevID(d.id))
	}
	remove("chardev-remove", chardevID(d.id))
	v.forget(d)
	_ = v.save()
	close(d.cleaned)
}

// forget frees a device's slot and takes its socket out of QEMU's reach.
func (v *VM) forget(d *device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.unlinkSocket(d.id)
	if v.devices[d.id] == d {
		delete(v.devices, d.id)
	}
}

// save writes the state for Adopt.
func (v *VM) save() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.state
	s.Devices = nil
	for _, d := range v.devices {
		s.Devices = append(s.Devices, d.deviceState)
	}
	return s.save(v.dir)
}

// linkSocket puts a back end's socket into the directory that QEMU sees, and gives it to QEMU's user. It returns which
// file it is.
func (v *VM) linkSocket(id, socket string) (inode, error) {
	return linkSocket(v.dir, id, socket, v.state.UID, v.state.GID)
}

func linkSocket(dir, id, socket string, uid, gid int) (inode, error) {
	target := filepath.Join(dir, runDir, id)
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return inode{}, err
	}
	if err := os.Link(socket, target); errors.Is(err, unix.EXDEV) {
		return inode{}, wrong("%s: the socket %s is not on the file system of the VM's directory %s", id, socket, dir)
	} else if err != nil {
		return inode{}, fmt.Errorf("qemu: make the socket of %s reachable: %w", id, err)
	}
	if uid >= 0 {
		if err := os.Lchown(target, uid, gid); err != nil {
			_ = os.Remove(target)
			return inode{}, fmt.Errorf("qemu: make the socket of %s reachable: %w", id, err)
		}
	}
	return inodeOf(target)
}

func (v *VM) unlinkSocket(id string) { _ = os.Remove(filepath.Join(v.dir, runDir, id)) }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return inode{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return inode{st.Dev, st.Ino}, nil
}

// Relink makes the sockets reachable to QEMU again whose back ends have made new ones. It happens by itself once a second;
// a caller that knows that a back end was started anew spares the guest the wait.
func (v *VM) Relink() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, d := range v.devices {
		if now, err := inodeOf(d.socket); err != nil || now == d.link || d.isGone {
			continue
		}
		if link, err := v.linkSocket(d.id, d.socket); err == nil {
			d.link = link
		}
	}
}

// relink calls Relink until the machine ends.
func (v *VM) relink() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.Relink()
		case <-v.ended:
			return
		case <-v.detached:
			return
		}
	}
}
