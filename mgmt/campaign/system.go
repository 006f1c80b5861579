package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/grailos/grail/mgmt/api"
)

// image is the root disk of the campaign's Linux VMs.
const image = "campaign"

// tools are the host's programs that the image has, and where.
var tools = []string{"fio", "iperf3"}

// applets are the parts of busybox that scripts in the VMs use.
var applets = []string{"sh", "cat", "dmesg", "echo", "grep", "ping", "rm", "sleep", "tail", "test", "touch"}

// prepare makes the image: busybox, and the tools with the libraries that they need.
func (c *campaign) prepare(ctx context.Context) error {
	images := filepath.Join(c.dir, "state", "images")
	if err := os.MkdirAll(images, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"kernel", "busybox"} { // what the tests have fetched before
		cache, err := filepath.Abs(filepath.Join(c.cache, name))
		if err == nil {
			if _, err = os.Stat(cache); err == nil {
				err = os.Symlink(cache, filepath.Join(images, name))
			}
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	root := filepath.Join(c.dir, "root")
	for _, d := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "mnt"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; install the package busybox-static", err)
	}
	if err := place(box, filepath.Join(root, "bin/busybox")); err != nil {
		return err
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return err
		}
	}
	for _, t := range tools {
		path, err := exec.LookPath(t)
		if err != nil {
			return fmt.Errorf("%w; install the package %s", err, t)
		}
		if err := place(path, filepath.Join(root, "bin", t)); err != nil {
			return err
		}
		libraries, err := libraries(ctx, path)
		if err != nil {
			return err
		}
		for _, l := range libraries {
			if err := place(l, filepath.Join(root, l)); err != nil {
				return err
			}
		}
	}
	if _, err := c.box.Do(ctx, "image", "build", image, "--dir", root); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// place copies a program or a library.
func place(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

// libraries returns the paths of what a dynamic program is linked with, its loader among them.
func libraries(ctx context.Context, program string) (list []string, err error) {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", program, err)
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				list = append(list, word)
			}
		}
	}
	return list, nil
}

// boot makes a Linux VM from the image, with devices of drivers, and starts it.
func (c *campaign) boot(ctx context.Context, name string, devices ...string) error {
	args := append([]string{"create", "--personality", "linux", "--name", name, "--image", image, "--cpu", "1"}, devices...)
	if _, err := c.box.Do(ctx, args...); err != nil {
		return err
	}
	_, err := c.box.Do(ctx, "start", name)
	return err
}

// in runs a script in a VM.
func (c *campaign) in(ctx context.Context, vm, script string) (string, error) {
	b, err := c.box.Do(ctx, "exec", vm, "--", "sh", "-c", script)
	return strings.TrimSpace(string(b)), err
}

// load is a script that does the same work in a VM again and again, and fails when the work does.
type load struct {
	c     *campaign
	vm    string
	ended chan struct{} // closed when the script has ended
	out   string        // valid once ended is closed
	err   error
}

// start begins with the work, whose output goes to /tmp/out, and returns once it has begun. Between two rounds, and at the end, say prints a line about the
// last one.
func (c *campaign) start(ctx context.Context, vm, work, say string) (*load, error) {
	l := &load{c: c, vm: vm, ended: make(chan struct{})}
	script := fmt.Sprintf("touch /tmp/begun; while :; do %s >/tmp/out 2>&1 || { tail -n 30 /tmp/out >&2; exit 1; }; %s; ! [ -e /tmp/stop ] || exit 0; done", work, say)
	go func() {
		defer close(l.ended)
		l.out, l.err = c.in(ctx, vm, script)
	}()
	if _, err := c.in(ctx, vm, "until [ -e /tmp/begun ]; do sleep 0.1; done"); err != nil {
		return nil, err
	}
	return l, nil
}

// stop lets the round that is going on come to its end, and returns what was said of all.
func (l *load) stop(ctx context.Context) ([]string, error) {
	if _, err := l.c.in(ctx, l.vm, "touch /tmp/stop"); err != nil {
		return nil, err
	}
	select {
	case <-l.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if l.err != nil {
		return nil, fmt.Errorf("the work in VM %s: %w", l.vm, l.err)
	}
	return strings.Split(l.out, "\n"), nil
}

// linux is the whole campaign with Linux VMs.
func (c *campaign) linux(ctx context.Context) error {
	if err := c.prepare(ctx); err != nil {
		return err
	}
	err := c.verified(ctx)
	if err == nil {
		err = c.connected(ctx)
	}
	if err != nil && ctx.Err() == nil {
		c.say("%s", c.box.Account(ctx))
	}
	return err
}

// verified has fio write to a disk and verify what it reads, while the disk's driver is crashed.
func (c *campaign) verified(ctx context.Context) error {
	disk, err := c.newDisk()
	if err != nil {
		return err
	}
	if _, err := c.box.Do(ctx, c.args("driver", "create", "blk", driver, "--socket", "--disk", "d="+disk)...); err != nil {
		return err
	}
	if err := c.boot(ctx, "fio", "--disk", driver+"/d"); err != nil {
		return err
	}
	// vda is the root. fio verifies each block that it has written, by its sum and its place, when it has written all.
	l, err := c.start(ctx, "fio", "fio --name=v --filename=/dev/vdb --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-64k --size=24M "+
		"--verify=crc32c --verify_fatal=1 --fsync=64 --randrepeat=0", "echo round")
	if err != nil {
		return err
	}
	err = c.storm(ctx, driver, maxPause, l.ended)
	rounds, serr := l.stop(ctx)
	if err = errors.Join(err, serr); err != nil {
		return err
	}
	if said, err := c.in(ctx, "fio", "dmesg | grep -i error || true"); err != nil || said != "" {
		return errors.Join(err, fmt.Errorf("the guest's kernel says %q", said))
	}
	if err := c.sum(ctx, driver); err != nil {
		return err
	}
	if _, err := c.box.Do(ctx, "rm", "--force", "fio"); err != nil {
		return err
	}
	c.say("fio wrote and verified 24 MiB %d times; errors: 0", len(rounds))
	return nil
}

// connected has iperf3 send through a switch, while that is crashed.
func (c *campaign) connected(ctx context.Context) error {
	const network = "net0"
	if _, err := c.box.Do(ctx, c.args("driver", "create", "net", network, "--port", "server", "--port", "client")...); err != nil {
		return err
	}
	var d api.Driver
	if err := c.box.Ask(ctx, &d, "inspect", network); err != nil {
		return err
	}
	for _, name := range []string{"server", "client"} {
		if err := c.boot(ctx, name, "--net", network+"/"+name); err != nil {
			return err
		}
	}
	// It becomes a daemon before it listens.
	listen := "iperf3 -s -D && for i in $(seq 300); do netstat -ltn | grep -q :5201 && exit; usleep 100000; done; exit 1"
	if _, err := c.in(ctx, "server", listen); err != nil {
		return err
	}
	server := d.Ports[0].Address.Addr()
	// A driver whose clients want nothing cannot hang; TCP alone may want nothing for a minute after a segment was lost often.
	if _, err := c.in(ctx, "client", fmt.Sprintf("ping %s >/dev/null 2>&1 &", server)); err != nil {
		return err
	}
	// A connection that is lost makes iperf3 fail.
	l, err := c.start(ctx, "client", fmt.Sprintf("iperf3 -c %s -t 5 -f m", server), "grep receiver /tmp/out")
	if err != nil {
		return err
	}
	err = c.storm(ctx, network, maxNetPause, l.ended)
	rounds, serr := l.stop(ctx)
	if err = errors.Join(err, serr); err != nil {
		return err
	}
	if err := c.sum(ctx, network); err != nil {
		return err
	}
	c.say("iperf3 sent over %d connections, one after the other, of which none was lost; the last: %s", len(rounds), strings.Join(strings.Fields(rounds[len(rounds)-1]), " "))
	return nil
}
