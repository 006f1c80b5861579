package trace

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
)

// here returns the caller's return addresses, innermost first.
//
//go:noinline
func here() []uint64 {
	var pcs [16]uintptr
	n := runtime.Callers(2, pcs[:])
	out := make([]uint64, n)
	for i, pc := range pcs[:n] {
		out[i] = uint64(pc)
	}
	return out
}

func self(t *testing.T) *Program {
	t.Helper()
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDecodeGo(t *testing.T) {
	pcs := here()
	f := &hv.Fault{Thread: 3, Vector: vecPage, Error: pfWrite, Address: 0x10, Signal: 11,
		Regs: map[string]uint64{"rip": pcs[0] - 1}, Code: []byte{0xc6, 0x00, 0x2a}, Frames: pcs[1:]}
	tr := Decode(f, self(t))
	if tr.What != "page fault writing unmapped address 0x10 (SIGSEGV) in thread 3" {
		t.Errorf("what: %q", tr.What)
	}
	if !strings.Contains(tr.Instruction, "MOVB $0x2a, 0(AX)") {
		t.Errorf("instruction: %q", tr.Instruction)
	}
	if len(tr.Stack) != len(pcs) || !strings.HasSuffix(tr.Stack[0].Func, "TestDecodeGo") ||
		!strings.HasSuffix(tr.Stack[0].File, "trace_test.go") || tr.Stack[0].Line == 0 || tr.Stack[1].Func != "testing.tRunner" {
		t.Errorf("stack: %+v", tr.Stack)
	}
}

func TestDecodeBias(t *testing.T) {
	const bias = 0x7f0000000000
	pcs := here()
	f := &hv.Fault{Regs: map[string]uint64{"rip": pcs[0] + bias}, Frames: []uint64{pcs[1] + bias}, Bias: bias}
	if tr := Decode(f, self(t)); !strings.HasSuffix(tr.Stack[0].Func, "TestDecodeBias") || tr.Stack[1].Func != "testing.tRunner" {
		t.Errorf("stack: %+v", tr.Stack)
	}
}

func TestDecodeC(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc")
	}
	dir := t.TempDir()
	src, exe := filepath.Join(dir, "a.c"), filepath.Join(dir, "a")
	if err := os.WriteFile(src, []byte("int work(int a) { return a * 3; }\nint main(void) { return work(2); }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-O0", "-static", "-o", exe, src).CombinedOutput(); err != nil {
		t.Skipf("gcc -static does not work here: %s", out)
	}
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.syms {
		if s.Name == "work" {
			tr := Decode(&hv.Fault{Regs: map[string]uint64{"rip": s.Value + 1}}, p)
			if tr.Stack[0].Func != "work" || tr.Instruction != "not readable" {
				t.Errorf("%+v", tr)
			}
			return
		}
	}
	t.Error("no symbol work")
}

func TestDecodeNothingKnown(t *testing.T) {
	tr := Decode(&hv.Fault{Vector: -1, Signal: 6}, nil)
	if tr.What != "signal SIGABRT in thread 0" || len(tr.Stack) != 0 {
		t.Errorf("%+v", tr)
	}
	tr = Decode(&hv.Fault{Vector: vecUndefined, Signal: 4, Regs: map[string]uint64{"rip": 0}, Code: []byte{0xff, 0xff}, Frames: []uint64{0}}, nil)
	if len(tr.Stack) != 2 || !strings.Contains(tr.Instruction, "unknown instruction") {
		t.Errorf("%+v", tr)
	}
}

func FuzzOpen(f *testing.F) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(exe[:4096], uint64(0x401000))
	f.Add([]byte("\x7fELF"), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, pc uint64) {
		p, err := Open(bytes.NewReader(b))
		if err != nil {
			return
		}
		Decode(&hv.Fault{Regs: map[string]uint64{"rip": pc}, Frames: []uint64{pc, 0, ^uint64(0)}}, p)
	})
}
