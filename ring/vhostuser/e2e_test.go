package vhostuser_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
	"github.com/grailos/grail/ring/virtioblk"
	"golang.org/x/sys/unix"
)

const diskBlocks = 256

// tempDisk makes an empty backing file.
func tempDisk(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(diskBlocks * blockLen); err != nil {
		t.Fatal(err)
	}
	return f
}

const diskSectors = diskBlocks * blockLen / virtioblk.SectorSize

func dial(t testing.TB, path string, opt vhostuser.Options) *vhostuser.Frontend {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := vhostuser.Dial(ctx, path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func client(t testing.TB, size uint16, slots int, base uint16) *ringtest.BlkClient {
	t.Helper()
	c, err := ringtest.NewBlkClient(size, slots, blockLen, base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var allFeatures = ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect | virtioblk.FeatureFlush

var allOptions = vhostuser.Options{Features: allFeatures}

// TestEndToEnd runs Frontend, Backend, Driver and Device together, in one process, under every negotiation that
// changes their way.
func TestEndToEnd(t *testing.T) {
	for _, features := range []uint64{
		allFeatures, allFeatures &^ ring.FeatureEventIdx, allFeatures &^ ring.FeatureIndirect,
		ring.FeatureVersion1 | virtioblk.FeatureFlush,
	} {
		for _, proto := range []uint64{vhostuser.ProtocolSupported, vhostuser.ProtocolSupported &^ vhostuser.ProtocolReplyAck, vhostuser.ProtocolConfig} {
			t.Run(fmt.Sprintf("features=%#x/protocol=%#x", features, proto), func(t *testing.T) {
				checkFDs(t)
				h := &ringtest.BlkServer{Disk: tempDisk(t), Sectors: diskSectors, ID: "e2e", Batch: 4}
				f := dial(t, serve(t, h), vhostuser.Options{Features: features, Protocol: proto})
				if f.Features() != features || f.ProtocolFeatures() != proto {
					t.Fatalf("negotiated %#x and %#x", f.Features(), f.ProtocolFeatures())
				}
				b, err := f.Config(0, virtioblk.ConfigBytes)
				if err != nil {
					t.Fatal(err)
				}
				if c := virtioblk.DecodeConfig(b); c.Capacity != diskSectors {
					t.Fatalf("capacity %d", c.Capacity)
				}
				c := client(t, 64, 16, 65500)
				logged, err := f.SetInflight(1, 64)
				if err != nil || logged != (proto&vhostuser.ProtocolInflight != 0) {
					t.Fatalf("in-flight log: %v %v", logged, err)
				}
				if err := c.Attach(f, 0); err != nil {
					t.Fatal(err)
				}
				w := newWorkload(t, c, 16, diskBlocks)
				w.run(2000)
				w.drain()
				base, err := f.Stop(0)
				if want := 65500 + uint16(w.Done); err != nil || base != want {
					t.Fatalf("stopped at %d, %v, want %d", base, err, want)
				}
				if errs := h.Errors(); errs != nil {
					t.Fatal(errs)
				}
			})
		}
	}
}

// TestGetID checks a request whose data area is shorter than the buffer.
func TestGetID(t *testing.T) {
	h := &ringtest.BlkServer{Disk: tempDisk(t), Sectors: diskSectors, ID: "grail-disk-0"}
	f := dial(t, serve(t, h), vhostuser.Options{Features: allFeatures})
	c := client(t, 8, 1, 0)
	if err := c.Attach(f, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Submit(0, virtioblk.TypeGetID, 0, virtioblk.IDBytes); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(); err != nil {
		t.Fatal(err)
	}
	if err := c.Reap(10*time.Second, func(_ int, status byte) {
		if id := string(bytes.TrimRight(c.Data(0)[:virtioblk.IDBytes], "\x00")); status != 0 || id != h.ID {
			t.Errorf("status %d, id %q", status, id)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// backend is a block server process that can be killed and started again on the same socket.
type backend struct {
	t    testing.TB
	path string
	argv []string
	env  []string
	cmd  *exec.Cmd
	out  bytes.Buffer
}

func (b *backend) start() {
	b.t.Helper()
	os.Remove(b.path)
	b.cmd = exec.Command(b.argv[0], b.argv[1:]...)
	b.cmd.Env = append(os.Environ(), b.env...)
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.out
	b.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
}

// kill ends the process at once and waits until it is gone.
func (b *backend) kill() {
	b.cmd.Process.Kill()
	b.cmd.Wait()
	if out := strings.TrimSpace(b.out.String()); out != "" {
		b.t.Logf("back end said: %s", out)
	}
	b.out.Reset()
}

func ourBackend(t testing.TB, disk string) *backend {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	return &backend{t: t, path: path, argv: []string{self}, env: []string{
		envServe + "=" + path, envDisk + "=" + disk, fmt.Sprintf("%s=%d", envSectors, diskSectors),
	}}
}

func qemuBackend(t testing.TB, disk string) *backend {
	t.Helper()
	exe, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		t.Skip("SKIPPED: qemu-storage-daemon is not installed (Debian package qemu-system-common):", err)
	}
	path := filepath.Join(t.TempDir(), "s")
	return &backend{t: t, path: path, argv: []string{
		exe, "--blockdev", "driver=file,node-name=f,filename=" + disk,
		"--export", "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path=" + path,
	}}
}

// dialWait connects to a back end that is still starting.
func dialWait(t testing.TB, path string, opt vhostuser.Options) *vhostuser.Frontend {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		f, err := vhostuser.Dial(context.Background(), path, opt)
		if err == nil {
			t.Cleanup(func() { f.Close() })
			return f
		}
		if time.Now().After(deadline) || !(errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)) {
			t.Fatal(err)
		}
	}
}

// killedUnderLoad kills and restarts b under a verifying workload.
func killedUnderLoad(t *testing.T, b *backend, disk string, proto uint64, kills int) {
	b.start()
	defer b.kill()
	f := dialWait(t, b.path, vhostuser.Options{Features: allFeatures, Protocol: proto})
	logged, err := f.SetInflight(1, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("features %#x, protocol features %#x, in-flight log: %v", f.Features(), f.ProtocolFeatures(), logged)
	c := client(t, 64, 32, 65400)
	if err := c.Attach(f, 0); err != nil {
		t.Fatal(err)
	}
	w := newWorkload(t, c, 32, diskBlocks)
	var worst time.Duration
	for range kills {
		w.run(200 + w.rng.IntN(300))
		w.submit(32)
		b.kill()
		if !f.Disconnected() {
			t.Fatal("connection outlived the back end")
		}
		begin := time.Now()
		b.start()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := f.Reconnect(ctx, func(int) (uint16, error) {
			for { // completions that the old back end published are still good
				if !c.Driver().Pending() {
					return c.Driver().Rewind()
				}
				if err := c.Reap(time.Second, w.complete); err != nil {
					return 0, err
				}
			}
		})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		w.run(1)
		worst = max(worst, time.Since(begin))
	}
	w.run(200)
	w.drain()
	t.Logf("%d requests, %d kills, start to first completion at worst %v", w.Done, kills, worst)
	got, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for i := range diskBlocks {
		if err := w.check(got[i*blockLen:][:blockLen], i); err != nil {
			t.Error(err)
		}
	}
}

func TestKillBackend(t *testing.T) {
	for _, proto := range []uint64{vhostuser.ProtocolSupported, vhostuser.ProtocolSupported &^ vhostuser.ProtocolInflight} {
		t.Run(fmt.Sprintf("protocol=%#x", proto), func(t *testing.T) {
			checkFDs(t)
			disk := tempDisk(t).Name()
			killedUnderLoad(t, ourBackend(t, disk), disk, proto, 20)
		})
	}
}

func TestKillQEMUStorageDaemon(t *testing.T) {
	disk := tempDisk(t).Name()
	killedUnderLoad(t, qemuBackend(t, disk), disk, 0, 5)
}

func TestQEMUStorageDaemon(t *testing.T) {
	for _, features := range []uint64{allFeatures, allFeatures &^ ring.FeatureEventIdx, allFeatures &^ ring.FeatureIndirect} {
		t.Run(fmt.Sprintf("features=%#x", features), func(t *testing.T) {
			disk := tempDisk(t).Name()
			b := qemuBackend(t, disk)
			b.start()
			defer b.kill()
			f := dialWait(t, b.path, vhostuser.Options{Features: features, Require: ring.FeatureVersion1})
			space, err := f.Config(0, virtioblk.ConfigBytes)
			if err != nil {
				t.Fatal(err)
			}
			cfg := virtioblk.DecodeConfig(space)
			if cfg.Capacity != diskSectors {
				t.Fatalf("capacity %d, want %d", cfg.Capacity, diskSectors)
			}
			n, err := f.QueueNum()
			if err != nil || n == 0 {
				t.Fatalf("%d queues, %v", n, err)
			}
			c := client(t, 128, 32, 0)
			if err := c.Attach(f, 0); err != nil {
				t.Fatal(err)
			}
			w := newWorkload(t, c, 32, diskBlocks)
			w.run(3000)
			w.drain()
			if base, err := f.Stop(0); err != nil || base != uint16(w.Done) {
				t.Fatalf("stopped at %d, %v, want %d", base, err, w.Done)
			}
			got, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			for i := range diskBlocks {
				if err := w.check(got[i*blockLen:][:blockLen], i); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
