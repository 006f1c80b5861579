package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/sandbox"
)

// linuxRig is a rig whose client is not ours: a Linux VM in QEMU, in which fio verifies a disk, and whose block driver is harmed. A client that is
// not ours can be protected from a driver that dies, and not from one that lies in the rings that the two share: it may give up its disk.
type linuxRig struct {
	*rig
	sub  *campaign // the parts that it has in common with "campaign -linux"
	load *load
}

// linuxVM is the rig's client.
const linuxVM = "fio"

// Time limits of a rig with a Linux VM. It boots in 5 seconds on a machine to itself and in 6 to 30 beside other rigs; it was not there after 3 minutes while other
// systems on the same hardware took 20 to 70 % of the processors.
const (
	linuxBuildLimit = 5 * time.Minute
	linuxServeLimit = 2 * time.Minute
	rebootLimit     = 8 * time.Minute
)

// base implements bench.
func (r *rig) base() *rig { return r }

// noLinux says why there can be no rig with a Linux VM, or returns nil.
func (c *faults) noLinux() error {
	if runtime.GOARCH != "amd64" {
		return errors.New("the emulated machine is an x86-64")
	}
	for _, p := range append([]string{"qemu-system-x86_64", "busybox"}, tools...) {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w; images/setup linux installs it", err)
		}
	}
	return nil
}

// newLinuxRig builds a rig with a Linux VM.
func (c *faults) newLinuxRig(ctx context.Context, name string, e hv.Engine) (_ *linuxRig, err error) {
	ctx, cancel := context.WithTimeout(ctx, linuxBuildLimit)
	defer cancel()
	sub := *c.campaign
	sub.dir, sub.out, sub.engine = filepath.Join(c.dir, name), io.Discard, ""
	if err := os.MkdirAll(sub.dir, 0o700); err != nil {
		return nil, err
	}
	sub.box = sandbox.New(c.bin, sub.dir)
	r := &rig{c: c.campaign, name: name, engine: e, dir: sub.dir, box: sub.box, api: sub.box.Client()}
	l := &linuxRig{rig: r, sub: &sub}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, r.box.Account(context.WithoutCancel(ctx)))
			r.destroy()
		}
	}()
	if err := r.startGraild(ctx); err != nil {
		return nil, err
	}
	if err := sub.prepare(ctx); err != nil {
		return nil, err
	}
	for _, d := range []api.DriverConfig{{Name: block, Socket: true}, {Name: bystander, Spares: new(int)}} {
		path, err := r.newImage(d.Name)
		if err != nil {
			return nil, err
		}
		d.Type, d.Engine, d.MemoryBytes, d.Disks = "blk", e, driverMemory, []api.Disk{{ID: "f", Path: path}}
		v, err := r.api.CreateDriver(ctx, api.CreateDriver{Config: d})
		if err != nil {
			return nil, fmt.Errorf("driver %s: %w", d.Name, err)
		}
		if r.tag == "" {
			if err := r.findTag(v.PID); err != nil {
				return nil, err
			}
		}
	}
	by := r.add(bystanderVM, bystander, "examples/verify", verifyArgs(c.seed, "f"), &api.DiskRef{Driver: bystander, Disk: "f"}, nil)
	if err := by.start(ctx); err != nil {
		return nil, err
	}
	by.pace(bystanderGap)
	if err := l.bootAndWork(ctx); err != nil {
		return nil, err
	}
	r.events = r.watch()
	return l, nil
}

// bootAndWork boots the Linux VM and begins with its work.
func (l *linuxRig) bootAndWork(ctx context.Context) error {
	if err := l.sub.boot(ctx, linuxVM, "--disk", block+"/f"); err != nil {
		return err
	}
	// vda is the root. The rate leaves the processor to the recoveries.
	var err error
	l.load, err = l.sub.start(context.WithoutCancel(ctx), linuxVM, "fio --name=v --filename=/dev/vdb --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite "+
		"--bsrange=4k-64k --size=4M --rate_iops=60 --verify=crc32c --verify_fatal=1 --fsync=64 --randrepeat=0", "echo round")
	return err
}

// over reports whether the VM's work has come to an end by itself.
func (l *linuxRig) over() bool {
	select {
	case <-l.load.ended:
		return true
	default:
		return false
	}
}

// try implements bench.
func (l *linuxRig) try(ctx context.Context, f *fault) (*judge, error) {
	j, err := l.rig.judge(ctx, f, l.happen)
	if err == nil {
		j.Target += " under Linux"
	}
	return j, err
}

// happen has the fault happen and looks what comes of it. Errors: errRefused; the rig does not come back.
func (l *linuxRig) happen(ctx context.Context, j *judge) error {
	r, f := l.rig, j.f
	r.events.fresh()
	for _, v := range r.clients {
		v.fresh()
	}
	before, err := r.look(ctx)
	if err != nil {
		return err
	}
	wait(ctx, f.lead)
	var after later
	if f.kind.way == killQEMU {
		j.What, err = r.killQEMU(linuxVM)
	} else {
		j.What, err = r.harm(ctx, f.kind, block, f, &after)
	}
	if err != nil {
		return err
	}
	dead := r.awaitDeaths(ctx, j, before)
	for _, end := range after.ends {
		select {
		case err := <-end:
			if err != nil {
				j.degrade("%v", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	limit, cancel := context.WithTimeout(ctx, linuxServeLimit)
	defer func() { cancel() }()
	reboot := func() {
		if err := l.reboot(ctx); err != nil {
			j.lost("the VM does not start again: %v", err)
		}
		cancel()
		limit, cancel = context.WithTimeout(ctx, linuxServeLimit)
	}
	events, _ := r.events.seen()
	if f.kind.taints && len(dead) == 0 {
		if err := r.retire(limit, block); err != nil { // whether the next one can serve the VM is seen below
			j.lost("a driver that survived its fault: %v", err)
		}
	}
	if f.kind.way == killQEMU {
		select {
		case <-l.load.ended:
		case <-limit.Done():
			j.lost("QEMU was killed, and the VM does not end")
		}
		reboot()
	} else if err := l.progress(limit); err != nil {
		switch {
		case f.kind.lies:
			j.liedAbout("the Linux VM: %v", err)
		case strings.HasPrefix(f.kind.name, "ring:"):
			j.degrade("the Linux VM gave up its disk, whose driver broke the rules of its ring: %v", err)
			reboot()
		default:
			j.lost("the Linux VM: %v", err)
		}
	}
	if err := r.serve(limit, nil); err != nil {
		j.lost("%v", err)
	}
	r.probeAll(limit, j, nil, nil)
	r.verify(limit, j, events, nil)
	r.settle(limit, j, dead)
	return nil
}

// progress returns when the VM's requests are done, by what the driver counts. Errors: its work came to an end; they stand still.
func (l *linuxRig) progress(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, serveLimit)
	defer cancel()
	var first *api.DriverStats
	for {
		s, err := l.api.DriverStats(limit, block)
		switch {
		case l.over():
			return fmt.Errorf("its work ended: %w: %s", l.load.err, l.load.out)
		case limit.Err() != nil:
			return fmt.Errorf("its requests stand still: %w", limit.Err())
		case err != nil: // there is no driver, or no graild, for a moment
		case first == nil || s.Generation != first.Generation:
			first = &s
		case s.Requests > first.Requests+2:
			return nil
		}
		wait(limit, askGap)
	}
}

// reboot replaces the VM by a new one, which begins anew.
func (l *linuxRig) reboot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rebootLimit)
	defer cancel()
	if _, err := l.sub.box.Do(ctx, "rm", "--force", linuxVM); err != nil {
		return err
	}
	return l.bootAndWork(ctx)
}

// lastLook implements bench: fio comes to the end of its round, and the guest's kernel has nothing to complain of.
func (l *linuxRig) lastLook(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if l.over() {
		return fmt.Errorf("fio ended: %w: %s", l.load.err, l.load.out)
	}
	if _, err := l.load.stop(ctx); err != nil {
		return err
	}
	if said, err := l.sub.in(ctx, linuxVM, "dmesg | grep -i error || true"); err != nil || said != "" {
		return errors.Join(err, fmt.Errorf("the guest's kernel says %q", said))
	}
	return nil
}

// killQEMU kills the QEMU of a Linux VM.
func (r *rig) killQEMU(vm string) (string, error) {
	for _, p := range r.processes("vm:" + vm + ":") {
		pid := p.PID
		p.Close()
		for _, q := range descendants(pid) {
			if args, err := hv.Arguments(q); err != nil || !strings.Contains(args[0], "qemu-system") {
				continue
			}
			if err := unix.Kill(q, unix.SIGKILL); err != nil {
				return "", err
			}
			return fmt.Sprintf("killed process %d, the QEMU of VM %s", q, vm), nil
		}
	}
	return "", fmt.Errorf("%w: there is no QEMU of VM %s", errRefused, vm)
}

// descendants returns the children of a process, theirs, and so on.
func descendants(pid int) (list []int) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				list = append(append(list, n), descendants(n)...)
			}
		}
	}
	return list
}
