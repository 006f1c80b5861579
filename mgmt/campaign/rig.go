package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/sandbox"
)

// rig is one Grail with drivers that are harmed and clients that would notice. Faults follow each other in it; another rig is harmed
// meanwhile, since most of a recovery is waiting.
type rig struct {
	c      *campaign
	name   string
	engine hv.Engine
	dir    string
	box    *sandbox.Sandbox
	api    *api.Client
	events *watcher
	log    *logReader // of the writer

	killing sync.Mutex // held while there is no graild
	graild  int        // its process
	tag     string     // beginning of the tags of its VMs' processes
	clients []*client
	writer  *client // on block; checked at the end, also from the host
	victims map[string]*client
	image   string
	done    int // faults
}

// The parts of a rig that are not harmed.
const (
	bystander    = "by0" // driver of a VM that has nothing to do with any fault
	bystanderVM  = "by"
	diskBytes    = 8 << 20
	servedMiB    = 2 // of each disk
	servedBy     = 2 // workers
	bystanderGap = 200 * time.Millisecond
	busyGap      = 15 * time.Millisecond
	clientMemory = 32 << 20
	driverMemory = 64 << 20
)

// Time limits. A host that is busy with several rigs is slow.
const (
	buildLimit = 2 * time.Minute
	faultLimit = 12 * time.Minute // what a fault waits for has limits of its own
	endLimit   = 2 * time.Minute
	// serveLimit is when a driver must serve again, and a graild that was started. It takes a fraction of a second; but nothing is to be called lost
	// because somebody else uses the processors.
	serveLimit = time.Minute
)

// newRig builds a rig.
func (c *campaign) newRig(ctx context.Context, name string, e hv.Engine) (_ *rig, err error) {
	ctx, cancel := context.WithTimeout(ctx, buildLimit)
	defer cancel()
	r := &rig{c: c, name: name, engine: e, dir: filepath.Join(c.dir, name), victims: map[string]*client{}}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, err
	}
	r.box = sandbox.New(c.bin, r.dir)
	r.api = r.box.Client()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, r.box.Account(context.WithoutCancel(ctx)))
			r.destroy()
		}
	}()
	if err := r.startGraild(ctx); err != nil {
		return nil, err
	}
	var disks []api.Disk
	for _, id := range []string{"d", "e", "f"} {
		path, err := r.newImage(id)
		if err != nil {
			return nil, err
		}
		disks = append(disks, api.Disk{ID: id, Path: path})
	}
	r.image = disks[0].Path
	for _, d := range []api.DriverConfig{
		{Name: console, Type: "console"}, // first, or graild makes one of its own
		{Name: block, Type: "blk", Disks: disks[:2]},
		{Name: bystander, Type: "blk", Disks: disks[2:], Spares: new(int)},
		{Name: network, Type: "net", Ports: []api.Port{{Name: "a"}, {Name: "b"}}},
	} {
		d.Engine, d.MemoryBytes = e, driverMemory
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
	net, err := r.api.Driver(ctx, network)
	if err != nil {
		return nil, err
	}
	r.writer = r.add("w", block, "examples/verify", verifyArgs(c.seed, "d"), &api.DiskRef{Driver: block, Disk: "d"}, nil)
	r.victims[block] = r.add("v", block, "examples/verify", append(verifyArgs(c.seed, "e"), "-dirty"), &api.DiskRef{Driver: block, Disk: "e"}, nil)
	by := r.add(bystanderVM, bystander, "examples/verify", verifyArgs(c.seed, "f"), &api.DiskRef{Driver: bystander, Disk: "f"}, nil)
	serve := r.add("s", network, "examples/netcheck", []string{"serve"}, nil, &api.NetRef{Driver: network, Port: "a"})
	r.victims[network] = r.add("n", network, "examples/netcheck", []string{"probe", net.Ports[0].Address.Addr().String()}, nil, &api.NetRef{Driver: network, Port: "b"})
	for _, v := range r.clients {
		if err := v.start(ctx); err != nil {
			return nil, err
		}
	}
	r.clients = slices.DeleteFunc(r.clients, func(v *client) bool { return v == serve }) // it takes no commands
	r.clients = append(r.clients, serve)
	by.pace(bystanderGap)
	r.events = r.watch()
	r.log = &logReader{c: r.writer}
	return r, nil
}

// newImage makes the file of a disk.
func (r *rig) newImage(name string) (path string, err error) {
	path = filepath.Join(r.dir, name+".img")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	return path, errors.Join(f.Truncate(diskBytes), f.Close())
}

// verifyArgs are the arguments of a verifying client of a disk.
func verifyArgs(seed uint64, disk string) []string {
	return []string{"-serve", "-disk", disk, "-mib", strconv.Itoa(servedMiB), "-workers", strconv.Itoa(servedBy), "-seed", strconv.FormatUint(seed, 10)}
}

// add describes a client.
func (r *rig) add(name, driver, program string, args []string, disk *api.DiskRef, port *api.NetRef) *client {
	cfg := api.VMConfig{Name: name, Personality: api.Native, Engine: r.engine, MemoryBytes: clientMemory, Program: r.box.Program(program), Args: args}
	if disk != nil {
		cfg.Disks = []api.DiskRef{*disk}
	}
	if port != nil {
		cfg.Nets = []api.NetRef{*port}
	}
	v := &client{r: r, name: name, driver: driver, cfg: cfg, silent: args[0] == "serve"}
	r.clients = append(r.clients, v)
	return v
}

// startGraild starts graild and notes its process.
func (r *rig) startGraild(ctx context.Context) error {
	if _, err := r.box.Do(ctx, "daemon", "start"); err != nil {
		return err
	}
	v, err := r.api.Version(ctx)
	r.graild = v.PID
	return err
}

// findTag takes the beginning of the tags from one VM's process.
func (r *rig) findTag(pid int) error {
	args, err := hv.Arguments(pid)
	if err != nil {
		return err
	}
	f := strings.Split(args[len(args)-1], ":") // grail:STORE:ROLE:NAME:GENERATION
	if len(f) != 5 {
		return fmt.Errorf("process %d has the arguments %q, and no tag at their end", pid, args)
	}
	r.tag = f[0] + ":" + f[1] + ":"
	return nil
}

// processes returns the VMM processes whose tag begins with role and name, "" for all of the rig.
func (r *rig) processes(of string) (list []*hv.Process) {
	entries, err := os.ReadDir("/proc")
	if err != nil || r.tag == "" {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := hv.FindProcess(pid, func(args []string) bool { return strings.HasPrefix(args[len(args)-1], r.tag+of) })
		if err == nil {
			list = append(list, p)
		}
	}
	return list
}

// lastLook ends the writer and has the host compare the disk with what it wrote.
func (r *rig) lastLook(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	for _, v := range r.clients {
		v.fresh()
		if v.silent {
			continue
		}
		v.pace(0)
		if v.driver == network {
			continue
		}
		if _, err := v.ask(ctx, "check"); err != nil {
			return err
		}
	}
	if _, err := r.writer.ask(ctx, "table"); err != nil {
		return err
	}
	for _, v := range r.clients {
		if errs, bads := v.complaints(); len(errs)+len(bads) > 0 {
			return fmt.Errorf("VM %s: %s", v.name, strings.Join(append(bads, errs...), "; "))
		}
	}
	if err := r.writer.end(ctx); err != nil {
		return err
	}
	if err := r.api.RemoveDriver(ctx, block, true); err != nil {
		return err
	}
	w := r.writer
	cmd := exec.CommandContext(ctx, r.box.Program("examples/verify"), "-check", "-table", "-image", r.image, "-seed", w.cfg.Args[slices.Index(w.cfg.Args, "-seed")+1])
	w.mu.Lock()
	cmd.Stdin = strings.NewReader(strings.Join(w.table, "\n"))
	w.mu.Unlock()
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the disk, looked at from the host: %w: %s", err, strings.TrimSpace(string(b)))
	}
	return nil
}

// destroy ends all of the rig's processes, in order or not, and removes its files.
func (r *rig) destroy() {
	if r.events != nil {
		r.events.stop()
	}
	if r.log != nil {
		r.log.close()
	}
	for _, v := range r.clients {
		if v.in != nil {
			v.in.Close()
		}
	}
	err := r.box.Clean()
	left := r.processes("")
	if err != nil || len(left) > 0 {
		r.c.say("rig %s was not cleaned up in order: %v; %d processes left", r.name, err, len(left))
		if v, err := r.api.Version(context.Background()); err == nil {
			_ = unix.Kill(v.PID, unix.SIGKILL)
		}
		left = append(left, r.processes("")...)
	}
	for _, p := range left {
		_ = p.Kill()
		p.Close()
	}
	_ = os.RemoveAll(r.dir)
}
