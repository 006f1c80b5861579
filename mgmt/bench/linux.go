package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/linuximage"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/personalities/linux/agent"
)

// Bounds of the Linux benchmarks.
const (
	linuxMemory = 256 // MiB, of each guest
	linuxLimit  = 3 * time.Minute
)

var linuxNames = []string{"linux_boot", "linux_blk_seq", "linux_blk_4k", "linux_net_tcp"}

// linux compares a Linux VM with a plain QEMU: the same kernel, initial file system, machine type and command line; its disk is a driver VM's on
// one side and QEMU's own on the other, on the same file.
func linux(b *bench) ([]Result, error) {
	emulator, err := exec.LookPath("qemu-system-x86_64")
	if err != nil || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: no qemu-system-x86_64 (Debian: qemu-system-x86)", errSkipped)
	}
	if _, err := b.startDaemon(); err != nil {
		return nil, err
	}
	boot, err := linuximage.Ensure(b.ctx, place.Dirs{State: filepath.Join(b.dir, "state")}.Images(), runtime.GOARCH)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSkipped, err)
	}
	// What the engine adds to the command line is the machine's business, not ours.
	line, err := b.grailctl("run", "--rm", "--personality", "linux", "--", "cat", "/proc/cmdline")
	if err != nil {
		return nil, err
	}
	p := &plainQEMU{program: emulator, boot: boot, line: strings.TrimSpace(line)}
	var results []Result
	if b.wanted("linux_boot") {
		r, err := b.linuxBoot(p)
		if err != nil {
			return nil, fmt.Errorf("linux_boot: %w", err)
		}
		results = append(results, r)
	}
	if b.wanted("linux_blk_seq", "linux_blk_4k") {
		rs, err := b.linuxBlock(p)
		if err != nil {
			return results, fmt.Errorf("linux_blk: %w", err)
		}
		results = append(results, rs...)
	}
	if b.wanted("linux_net_tcp") {
		r, err := b.linuxNet(p)
		if err != nil {
			return results, fmt.Errorf("linux_net_tcp: %w", err)
		}
		results = append(results, r)
	}
	return results, nil
}

func (b *bench) grailctlCommand(args ...string) (*exec.Cmd, error) {
	path, err := place.Program("grailctl")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, path, args...)
	cmd.Env = append(os.Environ(), "GRAIL_STATE_DIR="+filepath.Join(b.dir, "state"), "GRAIL_RUN_DIR="+filepath.Join(b.dir, "run"))
	return cmd, nil
}

// grailctl runs a command and returns its output, both streams of it.
func (b *bench) grailctl(args ...string) (string, error) {
	cmd, err := b.grailctlCommand(args...)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("grailctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// plainQEMU is the peer.
type plainQEMU struct {
	program, line string
	boot          linuximage.Boot
}

// plainVM is one that runs.
type plainVM struct {
	cmd   *exec.Cmd
	agent *agent.Client
}

// bus returns what the names of the machine's virtio devices end with.
func (p *plainQEMU) bus() string {
	if p.microvm() {
		return "device"
	}
	return "pci"
}

// microvm reports whether the engine has chosen that machine.
func (p *plainQEMU) microvm() bool { return strings.Contains(p.line, "pcie_ports=native") }

// disk returns the arguments for a disk of QEMU's own.
func (p *plainQEMU) disk(path string) []string {
	return []string{"-drive", "if=none,id=d,format=raw,file=" + path + ",file.locking=off", "-device", "virtio-blk-" + p.bus() + ",drive=d"}
}

// vhostDisk returns the arguments for a disk behind a vhost-user socket, to which QEMU connects again a second after it is cut off: there is no
// shorter time (qemu(1), -chardev socket, reconnect).
func (p *plainQEMU) vhostDisk(socket string) []string {
	return []string{"-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%dM,share=on", linuxMemory), "-machine", "memory-backend=ram",
		"-chardev", "socket,id=blk,path=" + socket + ",reconnect=1", "-device", "vhost-user-blk-pci,chardev=blk,num-queues=1"}
}

// nic returns the arguments for a network card with a back end (qemu(1), -netdev).
func (p *plainQEMU) nic(netdev string) []string {
	return []string{"-netdev", netdev + ",id=n", "-device", "virtio-net-" + p.bus() + ",netdev=n"}
}

// start boots the peer, with devices, and returns when its agent has answered.
func (p *plainQEMU) start(ctx context.Context, devices ...string) (*plainVM, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "agent")
	defer theirs.Close()
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", fmt.Sprint(linuxMemory) + "M",
		"-kernel", p.boot.Kernel, "-initrd", p.boot.Initrds[0], "-append", p.line, "-chardev", "socket,id=agent,fd=3"}
	machine := "q35,usb=off,vmport=off,smbus=off,sata=off"
	if p.microvm() {
		machine = "microvm,pcie=on,acpi=on,rtc=on,usb=off,isa-serial=on"
	}
	args = append(args, "-machine", machine, "-device", "virtio-serial-"+p.bus(), "-device", "virtserialport,chardev=agent,name="+agent.PortName, "-serial", "null")
	args = append(args, devices...)
	v := &plainVM{cmd: exec.CommandContext(ctx, p.program, args...)}
	v.cmd.ExtraFiles = []*os.File{theirs}
	var said bytes.Buffer
	v.cmd.Stderr = &said
	if err := v.cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, linuxLimit)
	defer cancel()
	if v.agent, err = agent.Dial(limited, ours); err != nil {
		v.stop()
		return nil, fmt.Errorf("plain QEMU: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return v, nil
}

// run runs a program in the guest and returns its output, both streams of it.
func (v *plainVM) run(ctx context.Context, argv ...string) (string, error) {
	var out bytes.Buffer
	code, err := v.agent.Exec(ctx, agent.ExecOptions{Process: agent.Process{Argv: argv}, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("%v: exit code %d: %s", argv, code, out.String())
	}
	return out.String(), err
}

func (v *plainVM) stop() {
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	if v.agent != nil {
		_ = v.agent.Close()
	}
}

// linuxBoot measures from the command to the first output of a program in the guest.
func (b *bench) linuxBoot(p *plainQEMU) (Result, error) {
	ours := func() (time.Duration, error) {
		cmd, err := b.grailctlCommand("run", "--rm", "--personality", "linux", "--", "echo", "up")
		if err != nil {
			return 0, err
		}
		return firstByte(func(w *os.File) (func() error, error) {
			cmd.Stdout = w
			return cmd.Wait, cmd.Start()
		})
	}
	theirs := func() (time.Duration, error) {
		begin := time.Now()
		v, err := p.start(b.ctx)
		if err != nil {
			return 0, err
		}
		defer v.stop()
		_, err = v.agent.Exec(b.ctx, agent.ExecOptions{Process: agent.Process{Argv: []string{"echo", "up"}}, Stdout: io.Discard})
		return time.Since(begin), err
	}
	a, q, err := inTurn(b, "linux_boot", b.rounds(5, 7), ours, theirs)
	if err != nil {
		return Result{}, err
	}
	seconds := func(d time.Duration) float64 { return d.Seconds() }
	r := newResult("linux_boot", "s", less, values(a, seconds), "plain QEMU, the same kernel, initramfs and machine", values(q, seconds))
	r.bar.ratio = 0.8
	return r, nil
}

// linuxJobs are what is read in the guest, with dd: enough for the guest's clock, which counts hundredths of seconds.
var linuxJobs = []struct {
	name  string
	block string
	count int
}{
	{"linux_blk_seq", "1M", 512},
	{"linux_blk_4k", "4k", 3000},
}

// uptimes matches the guest's uptime in seconds before and after the work.
var uptimes = regexp.MustCompile(`from ([0-9.]+) to ([0-9.]+)`)

// linuxBlock measures reads of the whole device from the page cache, without the guest's own.
func (b *bench) linuxBlock(p *plainQEMU) ([]Result, error) {
	path := filepath.Join(b.dir, "linux.img")
	if err := makeDisk(path); err != nil {
		return nil, err
	}
	if _, err := b.startDriver("lx", path); err != nil {
		return nil, err
	}
	defer b.removeDriver("lx")
	if _, err := b.grailctl("create", "--personality", "linux", "--name", "lxvm", "--disk", "lx/disk"); err != nil {
		return nil, err
	}
	if _, err := b.grailctl("start", "lxvm"); err != nil {
		return nil, err
	}
	defer func() {
		if _, err := b.grailctl("rm", "-f", "lxvm"); err != nil {
			b.progress("%v", err)
		}
	}()
	peer, err := p.start(b.ctx, p.disk(path)...)
	if err != nil {
		return nil, err
	}
	defer peer.stop()
	var results []Result
	for _, j := range linuxJobs {
		n := min(j.count, diskBytes/(1<<20)) // requests of the largest size that one pass over the disk has
		if j.block == "4k" {
			n = j.count
		}
		dd := []string{"sh", "-c", fmt.Sprintf("read a x </proc/uptime; i=0; while [ $i -lt %d ]; do dd if=/dev/vda of=/dev/null bs=%s count=%d iflag=direct 2>/dev/null || exit; "+
			"i=$((i+1)); done; read b x </proc/uptime; echo from $a to $b", j.count/n, j.block, n)}
		ours := func() (float64, error) {
			out, err := b.grailctl(append([]string{"exec", "lxvm", "--"}, dd...)...)
			if err != nil {
				return 0, err
			}
			return perSecond(out, j.count)
		}
		theirs := func() (float64, error) {
			out, err := peer.run(b.ctx, dd...)
			if err != nil {
				return 0, err
			}
			return perSecond(out, j.count)
		}
		a, q, err := inTurn(b, j.name, b.rounds(5, 15), ours, theirs)
		if err != nil {
			return results, err
		}
		same := func(v float64) float64 { return v }
		r := newResult(j.name, "requests/s", more, values(a, same), "plain QEMU, its own virtio-blk", values(q, same))
		r.bar.ratio = 0.95
		r.note = fmt.Sprintf("one request of %s at a time, O_DIRECT in the guest, from the host's page cache", j.block)
		results = append(results, r)
	}
	return results, nil
}

// perSecond makes a rate of what the guest said.
func perSecond(out string, requests int) (float64, error) {
	m := uptimes.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("the guest said %q", out)
	}
	from, err1 := strconv.ParseFloat(m[1], 64)
	to, err2 := strconv.ParseFloat(m[2], 64)
	if err := errors.Join(err1, err2); err != nil || to <= from {
		return 0, errors.Join(err, fmt.Errorf("the guest said %q", out))
	}
	return float64(requests) / (to - from), nil
}
