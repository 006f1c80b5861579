package sys

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/vfs"
)

// A mapped device that is truncated under the guest is a signal to it, and no more.
func TestTruncatedDevice(t *testing.T) {
	program := build(t, `package main
import ("fmt"; "runtime/debug"; "syscall")
func main() {
	b, err := syscall.Mmap(3, 0, 1<<20, syscall.PROT_READ, syscall.MAP_SHARED)
	fmt.Println(err, b[0])
	if _, err := syscall.Mmap(3, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err == nil { fmt.Println("mapped for writing") }
	var go_ [1]byte
	syscall.Read(0, go_[:])
	debug.SetPanicOnFault(true)
	if _, err := syscall.Write(1, b[1<<18:][:16]); err != syscall.EFAULT { fmt.Println("write:", err) }
	defer func() { fmt.Println("recovered", recover() != nil) }()
	fmt.Println(b[1<<19])
}`)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, append([]byte{42}, make([]byte, 1<<20-1)...), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var in, out [2]int
	for _, p := range []*[2]int{&in, &out} {
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[0])
		defer unix.Close(p[1])
	}
	table, err := vfs.New(vfs.Config{Stdin: in[0], Stdout: out[1], Stderr: out[1], Log: [2]int{-1, -1}, Files: -1, Program: int(f.Fd()),
		ProgramName: "guest", Caps: []hv.CapSpec{{Kind: abi.CapDevice, Name: "d", Rights: abi.RightRead | abi.RightWrite, FD: int(d.Fd()), Size: 1 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	g, err := New(Config{KVM: openKVM(t), MemoryBytes: 64 << 20, Program: f, Argv: []string{"guest"}, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan End)
	go func() { ended <- g.Run() }()
	line := func() string {
		var got []byte
		for b := [1]byte{}; len(got) == 0 || got[len(got)-1] != '\n'; got = append(got, b[0]) {
			if n, err := unix.Read(out[0], b[:]); n != 1 {
				t.Fatal(n, err)
			}
		}
		return string(got)
	}
	if got := line(); got != "<nil> 42\n" {
		t.Fatalf("the guest says %q", got)
	}
	if err := d.Truncate(0); err != nil {
		t.Fatal(err)
	}
	unix.Write(in[1], []byte{1})
	if got := line(); got != "recovered true\n" {
		t.Errorf("the guest says %q", got)
	}
	if end := <-ended; end.Cause != hv.CauseExit || end.Code != 0 {
		t.Errorf("%v", end)
	}
}
