package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compileC makes a static program of testdata/c/NAME.c with musl.
func compileC(t *testing.T, name string) string {
	t.Helper()
	cc, err := exec.LookPath("musl-gcc")
	if err != nil {
		t.Skip("SKIPPED: no musl-gcc here (package musl-tools)")
	}
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.Command(cc, "-O2", "-static", "-pthread", "-Wno-array-bounds", "-o", out, filepath.Join("testdata/c", name+".c"))
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, b)
	}
	return out
}

// TestC runs C programs that check themselves: what musl makes of threads, signals, memory and files.
func TestC(t *testing.T) {
	onEngines(t, func(r *rig) {
		for _, name := range []string{"files", "memory", "signals", "threads"} {
			r.t.Run(name, func(t *testing.T) {
				out, code := r.run(nil, "run", "--rm", "--engine", string(r.engine), "--env", "ENGINE="+string(r.engine), "--", compileC(t, name))
				if code != 0 || !strings.HasSuffix(out, "all ok\n") {
					t.Errorf("exit code %d\n%s", code, out)
				}
			})
		}
	})
}

// TestBusybox runs applets that need no other process, and compares what they print with what the host's own programs do.
func TestBusybox(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("SKIPPED: no busybox here (package busybox-static)")
	}
	if out, _ := exec.Command("ldd", busybox).CombinedOutput(); !strings.Contains(string(out), "not a dynamic executable") {
		t.Skipf("SKIPPED: %s is not static (package busybox-static)", busybox)
	}
	onEngines(t, func(r *rig) {
		files := r.t.TempDir()
		const seed = 4
		rnd := rand.New(rand.NewPCG(seed, seed))
		var text bytes.Buffer
		for range 20000 {
			fmt.Fprintf(&text, "%06d line %x\n", rnd.IntN(1_000_000), rnd.Uint64())
		}
		if err := os.WriteFile(filepath.Join(files, "text"), text.Bytes(), 0o644); err != nil {
			r.t.Fatal(err)
		}
		guest := func(t *testing.T, stdin []byte, args ...string) string {
			out, code := r.run(stdin, append([]string{"run", "--rm", "--engine", string(r.engine), "--files", files, "--", busybox}, args...)...)
			if code != 0 {
				t.Errorf("exit code %d: %.1000s", code, out)
			}
			return out
		}
		for _, c := range []struct {
			applet  []string
			command []string // of the host, in the folder of the files
		}{
			{[]string{"sha256sum", "/text"}, []string{"sha256sum", "text"}},
			{[]string{"sort", "/text"}, []string{"sort", "text"}},
			{[]string{"sort", "-rn", "-u", "-k1,1", "/text"}, []string{busybox, "sort", "-rn", "-u", "-k1,1", "text"}},
			{[]string{"awk", "{ n += $1 } END { print n, NR }", "/text"}, []string{busybox, "awk", "{ n += $1 } END { print n, NR }", "text"}},
			{[]string{"grep", "-c", "abc", "/text"}, []string{"grep", "-c", "abc", "text"}},
			{[]string{"wc", "-l", "/text"}, []string{"wc", "-l", "text"}},
		} {
			r.t.Run(c.applet[0], func(t *testing.T) {
				cmd := exec.Command(c.command[0], c.command[1:]...)
				cmd.Dir, cmd.Env = files, append(os.Environ(), "LC_ALL=C")
				want, err := cmd.Output()
				if err != nil {
					t.Fatal(err)
				}
				if got := strings.ReplaceAll(guest(t, nil, c.applet...), "/text", "text"); got != string(want) {
					t.Errorf("%v printed %.300q, want %.300q", c.applet, got, want)
				}
			})
		}
		r.t.Run("gzip", func(t *testing.T) {
			packed := guest(t, text.Bytes(), "gzip", "-c")
			cmd := exec.Command("gzip", "-dc")
			cmd.Stdin = strings.NewReader(packed)
			if out, err := cmd.Output(); err != nil || !bytes.Equal(out, text.Bytes()) {
				t.Errorf("the host's gzip unpacks %d bytes, want %d: %v", len(out), text.Len(), err)
			}
			if out := guest(t, []byte(packed), "gzip", "-dc"); out != text.String() {
				t.Errorf("unpacked again: %d bytes, want %d", len(out), text.Len())
			}
		})
	})
}
