package sys

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/vfs"
)

// openKVM returns /dev/kvm, or skips.
func openKVM(t testing.TB) int {
	t.Helper()
	if os.Getenv(guestsOnlyEnv) != "" {
		t.Skip("SKIPPED: guests are only compiled")
	}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIPPED, NO ENGINE: /dev/kvm: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// Where there is no Go tool, tests find their guests in the folder $GRAIL_TEST_GUESTS, by their sources' hash. With
// $GRAIL_TEST_GUESTS_ONLY set, build puts them there, and everything that needs an engine is skipped.
const (
	guestsEnv     = "GRAIL_TEST_GUESTS"
	guestsOnlyEnv = "GRAIL_TEST_GUESTS_ONLY"
)

// build compiles a Go guest from source text, or finds it compiled.
func build(t testing.TB, source string) string {
	t.Helper()
	dir, out := t.TempDir(), ""
	if made := os.Getenv(guestsEnv); made != "" {
		out = filepath.Join(made, fmt.Sprintf("%x", sha256.Sum256([]byte(source)))[:16])
		if _, err := os.Stat(out); err == nil {
			return out
		}
		if os.Getenv(guestsOnlyEnv) == "" {
			t.Fatalf("the guest %s is missing; it is made by running this test with %s", out, guestsOnlyEnv)
		}
	} else {
		out = filepath.Join(dir, "guest")
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", out, "main.go")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	return out
}

// result is what a guest left behind.
type result struct {
	End
	out    string
	guest  *Guest
	stdout *os.File
}

// run runs a program as a guest to its end.
func run(t testing.TB, memory uint64, program string, args ...string) result {
	t.Helper()
	return runWith(t, memory, func(g *Guest) {}, program, args...)
}

func runWith(t testing.TB, memory uint64, started func(*Guest), program string, args ...string) result {
	t.Helper()
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	table, err := vfs.New(vfs.Config{Stdin: -1, Stdout: int(out.Fd()), Stderr: int(out.Fd()), Log: [2]int{-1, -1},
		Files: -1, Program: int(f.Fd()), ProgramName: filepath.Base(program)})
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	g, err := New(Config{KVM: openKVM(t), MemoryBytes: memory, Program: f,
		Argv: append([]string{program}, args...), Env: []string{"PATH=/", "GODEBUG=" + os.Getenv("GUEST_GODEBUG")}, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(60*time.Second, g.Kill)
	defer timer.Stop()
	started(g)
	end := g.Run()
	b, _ := os.ReadFile(out.Name())
	t.Logf("end: %v; stats %+v; denied %v", end, g.Stats(), g.Denied())
	return result{End: end, out: string(b), guest: g}
}

func TestHello(t *testing.T) {
	r := run(t, 64<<20, build(t, `package main
import ("fmt"; "os")
func main() { fmt.Println("hello", os.Args[1:]); os.Exit(7) }`), "a", "b")
	if r.Cause != hv.CauseExit || r.Code != 7 || r.out != "hello [a b]\n" {
		t.Fatalf("%v, output %q", r.End, r.out)
	}
}

func TestGoRuntime(t *testing.T) {
	r := run(t, 256<<20, build(t, `package main
import ("fmt"; "sync"; "time"; "runtime"; "sort")
func main() {
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for i := range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := make([]int, 100000)
			for j := range s { s[j] = (j*7919 + i) % 100003 }
			sort.Ints(s)
			mu.Lock(); total += len(s); mu.Unlock()
		}()
	}
	wg.Wait()
	runtime.GC()
	start := time.Now()
	time.Sleep(30*time.Millisecond)
	d := time.Since(start)
	if d < 30*time.Millisecond || d > 2*time.Second { fmt.Println("slept", d) }
	// A loop without calls is preempted by a signal only.
	done := make(chan bool)
	go func() { for { select { case <-done: return; default: } } }()
	go func() { x := 0; for { x++ } }()
	time.Sleep(30*time.Millisecond)
	runtime.GC()
	close(done)
	defer func() { fmt.Println("recovered:", recover()); fmt.Println("total", total) }()
	var p *int
	*p = 1
}`))
	want := "recovered: runtime error: invalid memory address or nil pointer dereference\ntotal 5000000\n"
	if r.Cause != hv.CauseExit || r.Code != 0 || r.out != want {
		t.Fatalf("%v, output %q", r.End, r.out)
	}
	if f := r.guest.Fault(); f == nil || f.Signal != int(unix.SIGSEGV) || !strings.HasPrefix(string(f.Code), "") {
		t.Errorf("fault not recorded: %+v", f)
	}
}
