package main

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/grailos/grail/mgmt/linuximage"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/personalities/linux/agent"
)

const (
	// readerBefore is how long the guest reads before the crash.
	readerBefore = 2 * time.Second
	// readerSeconds is how long it reads in all.
	readerSeconds = 6
)

// reader reads its disk from the start, a sector at a time past the guest's cache, and says what it read.
var reader = []string{"sh", "-c", fmt.Sprintf("timeout %d dd if=/dev/vda bs=512 iflag=direct 2>/dev/null; [ $? = 143 ]", readerSeconds)}

// recoverVsQSD compares the pause that a Linux guest sees when its block driver VM is killed with the one when its qemu-storage-daemon is, which is
// started again at once and to which QEMU connects again.
func recoverVsQSD(b *bench) ([]Result, error) {
	const name = "recover_vs_qsd"
	emulator, err := exec.LookPath("qemu-system-x86_64")
	if err != nil || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: no qemu-system-x86_64 (Debian: qemu-system-x86)", errSkipped)
	}
	path := filepath.Join(b.dir, "reconnect.img")
	if err := makeDisk(path); err != nil {
		return nil, err
	}
	if _, err := b.startDriver("reconnect", path); err != nil {
		return nil, err
	}
	defer b.removeDriver("reconnect")
	boot, err := linuximage.Ensure(b.ctx, place.Dirs{State: filepath.Join(b.dir, "state")}.Images(), runtime.GOARCH)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSkipped, err)
	}
	for _, args := range [][]string{{"create", "--personality", "linux", "--name", "rcvm", "--disk", "reconnect/disk"}, {"start", "rcvm"}} {
		if _, err := b.grailctl(args...); err != nil {
			return nil, err
		}
	}
	defer func() {
		if _, err := b.grailctl("rm", "-f", "rcvm"); err != nil {
			b.progress("%v", err)
		}
	}()
	line, err := b.grailctl("exec", "rcvm", "--", "cat", "/proc/cmdline")
	if err != nil {
		return nil, err
	}
	ours := func() (time.Duration, error) {
		v, err := b.awaitSpare("reconnect")
		if err != nil {
			return 0, err
		}
		return pauseOf(func(w io.Writer) error {
			cmd, err := b.grailctlCommand(append([]string{"exec", "rcvm", "--"}, reader...)...)
			if err != nil {
				return err
			}
			cmd.Stdout = w
			return cmd.Run()
		}, func() error {
			_, err := b.daemon.CrashDriver(b.ctx, v.Name, "kill")
			return err
		})
	}
	peer, err := startPeer(b.dir, path, "threads", "32768")
	if err != nil {
		return nil, err
	}
	defer func() { peer.stop() }()
	q := &plainQEMU{program: emulator, boot: boot, line: strings.TrimSpace(line)}
	vm, err := q.start(b.ctx, q.vhostDisk(peer.socket)...)
	if err != nil {
		return nil, err
	}
	defer vm.stop()
	theirs := func() (time.Duration, error) {
		return pauseOf(func(w io.Writer) error {
			_, err := vm.agent.Exec(b.ctx, agent.ExecOptions{Process: agent.Process{Argv: reader}, Stdout: w})
			return err
		}, func() error {
			peer.stop()
			next, err := startPeer(b.dir, path, "threads", "32768")
			if err == nil {
				peer = next
			}
			return err
		})
	}
	a, p, err := inTurn(b, name, b.rounds(5, 11), ours, theirs)
	if err != nil {
		return nil, err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	r := newResult(name, "ms", less, values(a, ms), "qemu-storage-daemon, started again at once, QEMU with reconnect=1", values(p, ms))
	r.bar.ratio = 10
	r.note = "the longest pause in what a Linux guest (translated) reads, as its console tells it"
	return []Result{r}, nil
}

// pauseOf has a guest's reader say what it reads while crash is called, and returns the longest time in which it said nothing, of those that ended
// after that.
func pauseOf(read func(said io.Writer) error, crash func() error) (time.Duration, error) {
	var w pauses
	crashed := make(chan error, 1)
	timer := time.AfterFunc(readerBefore, func() {
		w.begin()
		crashed <- crash()
	})
	err := read(&w)
	if timer.Stop() {
		return 0, fmt.Errorf("the guest's reader ended too early: %w", err)
	}
	if cerr := <-crashed; cerr != nil {
		return 0, cerr
	}
	return w.longest, err
}

// pauses is a Writer that takes the time between what is written.
type pauses struct {
	mu      sync.Mutex
	begun   bool
	last    time.Time
	longest time.Duration
}

func (p *pauses) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun = true
}

// Write implements io.Writer.
func (p *pauses) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if gap := now.Sub(p.last); p.begun && gap > p.longest {
		p.longest = gap
	}
	p.last = now
	return len(b), nil
}
