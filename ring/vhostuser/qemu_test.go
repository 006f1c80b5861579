package vhostuser_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bootSector is a program for a PC's real mode. With the BIOS's disk services it copies blocks of 8 sectors, 64
// of them, from sector 8 on to sector 1032 on, adding 0x01020304 to each 32-bit word, and ends the machine
// through port 0xf4.
var bootSector = []byte{
	0xfa,       // cli
	0x31, 0xc0, // xor ax, ax
	0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov ds, ax; mov es, ax; mov ss, ax
	0xbc, 0x00, 0x7c, // mov sp, 0x7c00
	0xfb,             // sti
	0xb9, 0x40, 0x00, // mov cx, 64
	0xbe, 0x58, 0x7c, // next: mov si, packet
	0xb4, 0x42, // mov ah, 0x42 (extended read)
	0xcd, 0x13, // int 0x13
	0x72, 0x36, // jc fail
	0x51,             // push cx
	0xbf, 0x00, 0x80, // mov di, 0x8000
	0xb9, 0x00, 0x04, // mov cx, 1024
	0x66, 0x81, 0x05, 0x04, 0x03, 0x02, 0x01, // add: add dword [di], 0x01020304
	0x83, 0xc7, 0x04, // add di, 4
	0xe2, 0xf4, // loop add
	0x59,                                                 // pop cx
	0x66, 0x81, 0x06, 0x60, 0x7c, 0x00, 0x04, 0x00, 0x00, // add dword [sector], 1024
	0xb8, 0x00, 0x43, // mov ax, 0x4300 (extended write)
	0xbe, 0x58, 0x7c, // mov si, packet
	0xcd, 0x13, // int 0x13
	0x72, 0x0f, // jc fail
	0x66, 0x81, 0x2e, 0x60, 0x7c, 0xf8, 0x03, 0x00, 0x00, // sub dword [sector], 1016
	0xe2, 0xc5, // loop next
	0xb0, 0x10, // mov al, 0x10
	0xeb, 0x02, // jmp out
	0xb0, 0x20, // fail: mov al, 0x20
	0xe6, 0xf4, // out: out 0xf4, al
	0xf4,       // halt: hlt
	0xeb, 0xfd, // jmp halt
	0x66, 0x90, // (alignment)
	0x10, 0x00, 0x08, 0x00, 0x00, 0x80, 0x00, 0x00, // packet: 16 bytes, 8 sectors, to 0000:8000
	0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // sector: 8
}

const (
	exitCopied = 0x10<<1 | 1 // QEMU's exit status when the program has written 0x10
	exitFailed = 0x20<<1 | 1

	copyBlocks, copyFrom, copyTo = 64, 8 * 512, (8 + 1024) * 512
)

// TestQEMUClient boots a PC from our back end: its BIOS's virtio driver loads the program from the disk, which
// reads, changes and writes blocks. In the second run the back end dies with a request in its hands, twice, and
// QEMU and the in-flight log have to bring it back.
func TestQEMUClient(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("SKIPPED: qemu-system-x86_64 is not installed (Debian package qemu-system-x86):", err)
	}
	for _, c := range []struct {
		name string
		die  []int // I/O at which each back end dies
	}{{"steady", nil}, {"back end dies", []int{9, 40}}} {
		t.Run(c.name, func(t *testing.T) {
			disk := tempDisk(t)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			content := make([]byte, diskBlocks*blockLen)
			rng := rand.New(rand.NewPCG(seed, 0))
			for i := 0; i < len(content); i += 8 {
				binary.LittleEndian.PutUint64(content[i:], rng.Uint64())
			}
			clear(content[:512])
			copy(content, bootSector)
			content[510], content[511] = 0x55, 0xaa
			if _, err := disk.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			b := ourBackend(t, disk.Name())
			env := b.env
			dies := func() {
				b.env = env
				if len(c.die) > 0 {
					b.env = append(env[:len(env):len(env)], fmt.Sprintf("%s=%d", envDie, c.die[0]))
					c.die = c.die[1:]
				}
			}
			dies()
			b.start()
			defer b.kill()
			dialWait(t, b.path, allOptions).Close()

			cmd := exec.Command(qemu, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none",
				"-machine", "pc,memory-backend=m0,vmport=off", "-m", "32", "-object", "memory-backend-memfd,id=m0,size=32M,share=on",
				"-chardev", "socket,id=c,reconnect=1,path="+b.path,
				"-device", "vhost-user-blk-pci,chardev=c,num-queues=1,queue-size=64,bootindex=0",
				"-device", "isa-debug-exit,iobase=0xf4,iosize=1")
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			begin := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			limit := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
			defer limit.Stop()
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			err := superviseUntil(b, done, dies)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != exitCopied {
				t.Fatalf("QEMU: %v, want exit status %d (%d: disk error)\n%s", err, exitCopied, exitFailed, out.String())
			}
			t.Logf("QEMU ran %v", time.Since(begin).Round(time.Millisecond))
			if len(c.die) > 0 {
				t.Errorf("back ends that did not die: %v", c.die)
			}

			for i := 0; i < copyBlocks*blockLen; i += 4 {
				v := binary.LittleEndian.Uint32(content[copyFrom+i:]) + 0x01020304
				binary.LittleEndian.PutUint32(content[copyTo+i:], v)
			}
			got, err := os.ReadFile(disk.Name())
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if got[i] != content[i] {
					t.Fatalf("byte %d of the disk is %#x, want %#x", i, got[i], content[i])
				}
			}
		})
	}
}

// superviseUntil starts a back end again whenever it dies, until done.
func superviseUntil(b *backend, done <-chan error, next func()) error {
	for {
		died := make(chan struct{})
		go func() {
			b.cmd.Wait()
			close(died)
		}()
		select {
		case err := <-done:
			b.cmd.Process.Kill()
			<-died
			return err
		case <-died:
			b.t.Logf("back end died: %v: %s", b.cmd.ProcessState, strings.TrimSpace(b.out.String()))
			b.out.Reset()
			next()
			b.start()
		}
	}
}
