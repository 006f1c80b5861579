package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rootDir is, in a VM's directory, where QEMU's root is mounted, in QEMU's namespace only.
const rootDir = "root"

// Errors of Start and Adopt.
var (
	// ErrNamespaces reports that the host does not let the caller create the namespaces of the jail; see Jail.Off.
	ErrNamespaces = errors.New("qemu: the host refuses new namespaces")
	// ErrRunning reports a directory in which another machine runs.
	ErrRunning = errors.New("qemu: a machine runs in this directory")
	// ErrGone reports that the machine to adopt has ended.
	ErrGone = errors.New("qemu: the machine has ended")
	// ErrInUse reports that another process controls the machine.
	ErrInUse = errors.New("qemu: another process controls the machine")
)

// NewRAM returns a guest's memory: a memfd of that many bytes which can neither grow nor shrink.
func NewRAM(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("grail-ram-"+name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("qemu: memory of %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), "ram-"+name)
	if err := unix.Ftruncate(fd, size); err != nil {
		f.Close()
		return nil, fmt.Errorf("qemu: memory of %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, fmt.Errorf("qemu: memory of %s: %w", name, err)
	}
	return f, nil
}

// Start starts a machine and returns when QEMU answers: with the guest running, or before its first instruction if it is to be
// paused. ctx bounds the start only. Errors: ErrConfig, ErrNoQEMU, ErrNamespaces, ErrRunning, those of ctx; a QEMU that
// ends is reported with its last words.
func Start(ctx context.Context, c Config) (*VM, error) {
	c.Disks, c.NICs = append([]Disk(nil), c.Disks...), append([]NIC(nil), c.NICs...)
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.StartTimeout <= 0 {
		c.StartTimeout = 20 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, c.StartTimeout)
	defer cancel()
	found, err := Probe(ctx, c.Arch, c.Program)
	if err != nil {
		return nil, err
	}
	p := &plan{Config: &c, machine: c.Machine, accel: c.Accel}
	if c.Program, err = filepath.EvalSymlinks(found.Program); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoQEMU, err)
	}
	if p.accel == Auto {
		p.accel = found.Accel
	}
	if p.accel == TCG && c.Arch == AMD64 {
		p.tscKHz = hostTSC()
	}
	if p.machine == Fastest {
		p.machine = choose(c.Arch, p.accel, p.tscKHz)
	}
	v, err := p.start(ctx)
	if err != nil {
		return nil, err
	}
	if !c.Paused {
		if err := v.Resume(ctx); err != nil {
			_ = v.Kill()
			<-v.ended
			return nil, err
		}
	}
	return v, nil
}

// start starts QEMU with the guest paused.
func (p *plan) start(ctx context.Context) (_ *VM, err error) {
	if p.Dir, err = filepath.Abs(p.Dir); err != nil {
		return nil, err
	}
	if err := prepareDir(p.Dir); err != nil {
		return nil, err
	}
	v := newVM(p.Dir, &Log{})
	defer func() {
		if err != nil {
			v.tidy()
		}
	}()
	v.state = state{Name: p.Name, Machine: p.machine, Accel: p.accel, UID: -1, GID: -1, NoJail: p.Jail.Off,
		Slots: p.slots(), Boot: bootID()}
	if !p.Jail.Off && p.ownUser() {
		v.state.UID, v.state.GID = p.Jail.UID, p.Jail.GID
	}
	var opened []*os.File
	letGo := func() {
		for _, f := range opened {
			f.Close()
		}
		opened = nil
	}
	defer letGo()
	keep := func(f *os.File, err error) (int, error) {
		if err != nil {
			return 0, err
		}
		opened = append(opened, f)
		return p.add(f), nil
	}

	dir, err := os.Open(p.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	address := net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), qmpSocket), Net: "unix"}
	l, err := net.ListenUnix("unix", &address)
	if err != nil {
		return nil, fmt.Errorf("qemu: monitor socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if p.fds.qmp, err = keep(l.File()); err != nil {
		return nil, err
	}
	if p.fds.kernel, err = keep(regular(p.Kernel)); err != nil {
		return nil, wrong("kernel: %w", err)
	}
	if len(p.Initrds) > 0 {
		if p.fds.initrd, err = keep(initrd(p.Initrds)); err != nil {
			return nil, wrong("initrd: %w", err)
		}
	}
	if p.RAM != nil {
		if fi, err := p.RAM.Stat(); err != nil || fi.Size() < p.Memory {
			return nil, wrong("RAM has fewer than %d bytes (%v)", p.Memory, err)
		}
		p.fds.ram = p.add(p.RAM)
	} else if p.fds.ram, err = keep(NewRAM(p.Name, p.Memory)); err != nil {
		return nil, err
	}
	for _, s := range p.devices() {
		d := newDevice(s)
		v.devices[d.id] = d
		if d.link, err = v.linkSocket(d.id, d.socket); err != nil {
			return nil, err
		}
	}
	if err := p.spawn(v); err != nil {
		return nil, err
	}
	// With the last listening descriptor but QEMU's closed, its end ends the conversation.
	l.Close()
	letGo()
	conn, err := net.DialUnix("unix", nil, &address)
	if err == nil {
		v.client = newClient(conn, v.log, v.onEvent)
		err = v.client.greet(ctx)
	}
	if err != nil {
		return nil, v.stillborn(err)
	}
	go v.watch()
	go v.relink()
	if err := v.save(); err != nil {
		_ = v.Kill()
		<-v.ended
		return nil, err
	}
	return v, nil
}

// devices returns the machine's devices, each with its slot, in the order of the command line.
func (c *Config) devices() []deviceState {
	var out []deviceState
	for i := range c.Disks {
		out = append(out, deviceState{Slot: len(out), Disk: &c.Disks[i]})
	}
	for i := range c.NICs {
		out = append(out, deviceState{Slot: len(out), NIC: &c.NICs[i]})
	}
	return out
}

// stillborn kills and reaps a QEMU that has not answered, and explains err with its last words.
func (v *VM) stillborn(err error) error {
	var status string
	if v.process != nil {
		// It has a moment to say why it goes.
		kill := time.AfterFunc(500*time.Millisecond, func() { _ = v.signal(unix.SIGKILL) })
		if ps, werr := v.process.Wait(); werr == nil {
			status = ps.String()
		}
		kill.Stop()
	}
	v.pidfd.Close()
	if words := lastWords(v.dir); words != "" {
		return fmt.Errorf("qemu: %s does not start (%s): %s: %w", v.Name(), status, words, err)
	}
	return fmt.Errorf("qemu: %s does not start (%s): %w", v.Name(), status, err)
}

// spawn starts the launcher, which becomes QEMU.
func (p *plan) spawn(v *VM) error {
	spec := jailSpec{Args: append([]string{p.Program}, p.argv()...),
		FileBytes: uint64(p.Jail.FileBytes), OpenFiles: uint64(p.Jail.OpenFiles)}
	sys := &syscall.SysProcAttr{Setsid: true}
	if !p.Jail.Off {
		spec.Root, spec.Run = filepath.Join(p.Dir, rootDir), filepath.Join(p.Dir, runDir)
		spec.ReadOnly = readOnly(p.Jail.ReadOnly, p.Program)
		if p.accel == KVM {
			spec.Devices = []string{"/dev/kvm"}
		}
		spec.Caps = []int{unix.CAP_SYS_CHROOT}
		sys.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
		if uid := os.Geteuid(); p.ownUser() {
			// To change its user; to open again the files that it was given, whoever's they are.
			spec.Caps = append(spec.Caps, unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_DAC_OVERRIDE)
		} else {
			sys.Cloneflags |= unix.CLONE_NEWUSER
			sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
			sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		}
	}
	encoded, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	words, err := os.OpenFile(filepath.Join(p.Dir, stderrFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer words.Close()
	launcher := p.Jail.Launcher
	proc, err := os.StartProcess(launcher, []string{jailName, string(encoded), p.Name}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: append([]*os.File{null, words, words}, p.files...), Sys: sys,
	})
	if err != nil {
		if !p.Jail.Off && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL)) {
			return fmt.Errorf("%w: %w", ErrNamespaces, err)
		}
		return fmt.Errorf("qemu: start %s: %w", launcher, err)
	}
	v.process, v.state.PID = proc, proc.Pid
	if v.state.Started, err = startTime(proc.Pid); err == nil {
		v.pidfd, err = lifeline(proc.Pid, v.state.Started)
	}
	if err != nil {
		// Not to lose a process that nobody could ever find again.
		_ = proc.Kill()
		_, _ = proc.Wait()
		return fmt.Errorf("qemu: %w", err)
	}
	return nil
}

// prepareDir makes a VM's directory ready. Errors: ErrRunning.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if s, err := loadState(dir); err == nil && s.Boot == bootID() {
		if f, err := lifeline(s.PID, s.Started); err == nil {
			f.Close()
			return fmt.Errorf("%w: %s, process %d", ErrRunning, dir, s.PID)
		}
	}
	for _, name := range []string{qmpSocket, stateFile} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, runDir)); err != nil {
		return err
	}
	// QEMU's own user looks for sockets in it also when it has no privileges any more: when a device comes, and when a back end comes back.
	run := filepath.Join(dir, runDir)
	if err := errors.Join(os.Mkdir(run, 0o755), os.Chmod(run, 0o755)); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, rootDir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// regular opens a file that is one.
func regular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return f, nil
}

// initrd returns the initial file systems one behind the other, each at a multiple of 4 bytes (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst).
func initrd(paths []string) (*os.File, error) {
	if len(paths) == 1 {
		return regular(paths[0])
	}
	fd, err := unix.MemfdCreate("grail-initrd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	out := os.NewFile(uintptr(fd), "initrd")
	total := int64(0)
	for _, path := range paths {
		f, err := regular(path)
		if err == nil {
			var n int64
			n, err = io.Copy(out, io.LimitReader(f, maxInitrd-total))
			total += n
			f.Close()
		}
		if pad := -total & 3; err == nil && pad > 0 {
			_, err = out.Write(make([]byte, pad))
			total += pad
		}
		if err == nil && total >= maxInitrd {
			err = fmt.Errorf("more than %d bytes", int64(maxInitrd))
		}
		if err != nil {
			out.Close()
			return nil, err
		}
	}
	return out, nil
}
