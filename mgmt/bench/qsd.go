package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// storageDaemon is a running qemu-storage-daemon, the peer of the block benchmarks: QEMU's own vhost-user-blk server, as
// an ordinary host process.
type storageDaemon struct {
	name   string // how it is configured
	socket string
	cmd    *exec.Cmd
	said   bytes.Buffer // valid once it has ended
}

// peerConfigs are what is tried to bring out the best of it: who does the I/O, and for how long its thread polls the
// queue before it sleeps (qemu-storage-daemon(1), iothread; 32768 is its default).
var peerConfigs = []struct{ aio, pollNs string }{
	{"threads", "32768"},
	{"io_uring", "32768"},
	{"threads", "1000000"},
	{"io_uring", "1000000"},
}

// startPeer starts a qemu-storage-daemon with one queue on the file at path and returns when it listens.
func startPeer(dir, path, aio, pollNs string) (*storageDaemon, error) {
	program, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		return nil, fmt.Errorf("%w: qemu-storage-daemon is not installed (Debian: qemu-system-common or qemu-system-x86)", errSkipped)
	}
	d := &storageDaemon{name: "qemu-storage-daemon, aio=" + aio + ", poll-max-ns=" + pollNs,
		socket: filepath.Join(dir, "qsd-"+aio+"-"+pollNs+".sock")}
	d.cmd = exec.Command(program,
		"--object", "iothread,id=io,poll-max-ns="+pollNs,
		// The file is read by our driver VM in the same minute: no lock. Page cache: neither direct nor without flushes.
		"--blockdev", "driver=file,node-name=disk,filename="+path+",aio="+aio+",locking=off,cache.direct=off,cache.no-flush=off",
		"--export", "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path="+d.socket+
			",writable=on,num-queues=1,logical-block-size=512,iothread=io")
	d.cmd.Stdout, d.cmd.Stderr = &d.said, &d.said
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		// A connection of ours would be the one client that it serves: look for the socket only.
		if st, err := os.Stat(d.socket); err == nil && st.Mode()&os.ModeSocket != 0 && listening(d.socket) {
			return d, nil
		}
		var st unix.WaitStatus
		if pid, _ := unix.Wait4(d.cmd.Process.Pid, &st, unix.WNOHANG, nil); pid != 0 || time.Now().After(deadline) {
			d.stop()
			return nil, fmt.Errorf("%s does not start: %s", d.name, bytes.TrimSpace(d.said.Bytes()))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// listening reports whether the kernel lists path as a listening socket (proc(5), /proc/net/unix).
func listening(path string) bool {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		// Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is 1 << 16.
		if len(f) == 8 && string(f[7]) == path && string(f[3]) == "00010000" {
			return true
		}
	}
	return false
}

func (d *storageDaemon) stop() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// reachable reports whether path fits a socket address.
func reachable(path string) error {
	_, err := net.ResolveUnixAddr("unix", path)
	if err == nil && len(path) > 107 {
		err = fmt.Errorf("the socket path %s is too long; give a shorter -dir", path)
	}
	return err
}
