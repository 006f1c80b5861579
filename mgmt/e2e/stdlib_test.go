package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
)

// stdlib is what of Go's own library is tested inside a VM.
var stdlib = []struct {
	pkg   string
	quick bool              // also without GRAIL_E2E_FULL
	skip  map[string]string // tests that cannot pass there, and why
}{
	{pkg: "bytes", quick: true},
	{pkg: "strings"},
	{pkg: "sort", quick: true},
	{pkg: "strconv"},
	{pkg: "math", quick: true},
	{pkg: "math/big"},
	{pkg: "crypto/sha256"},
	{pkg: "encoding/json", quick: true, skip: map[string]string{"TestHTTPDecoding": "needs a socket"}},
	{pkg: "regexp"},
	{pkg: "text/template"},
	{pkg: "compress/flate"},
	{pkg: "image/png"},
	{pkg: "archive/zip"},
	{pkg: "bufio"},
	{pkg: "container/heap"},
	{pkg: "context", quick: true, skip: map[string]string{"ExampleAfterFunc_connection": "needs a socket"}},
	{pkg: "sync", quick: true, skip: map[string]string{
		"TestMutexMisuse": "starts another process", "TestIssue76126": "starts another process",
	}},
	{pkg: "sync/atomic"},
	{pkg: "hash/crc32"},
	{pkg: "unicode/utf8"},
	{pkg: "go/parser"},
	{pkg: "time"},
}

// stdlibLimit is how long one package's tests may take in a VM.
const stdlibLimit = 5 * time.Minute

// TestGoLibrary runs Go's own tests of its library as guests: a few packages in short form, and with GRAIL_E2E_FULL set all of them, and
// on both engines.
func TestGoLibrary(t *testing.T) {
	full := os.Getenv("GRAIL_E2E_FULL") != ""
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	// Debian's packages make it links.
	src, err := filepath.EvalSymlinks(filepath.Join(strings.TrimSpace(string(root)), "src"))
	if err != nil {
		t.Fatal(err)
	}
	binaries := t.TempDir()
	onEngines(t, func(r *rig) {
		if !full && r.engine == hv.EngineProcess {
			r.t.Skip("GRAIL_E2E_FULL is not set")
		}
		for _, p := range stdlib {
			if !full && !p.quick {
				continue
			}
			r.t.Run(p.pkg, func(t *testing.T) {
				binary := filepath.Join(binaries, strings.ReplaceAll(p.pkg, "/", "-"))
				if _, err := os.Stat(binary); err != nil {
					cmd := exec.Command("go", "test", "-c", "-o", binary, p.pkg)
					cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
				}
				// The tests read files of their own package, of some others, and the time zones.
				files := t.TempDir()
				guestRoot := strings.TrimSuffix(src, "/src")
				for _, f := range append([]string{"src/" + p.pkg}, needs[p.pkg]...) {
					if err := copyTree(filepath.Join(guestRoot, f), filepath.Join(files, guestRoot, f)); err != nil {
						t.Fatal(err)
					}
				}
				memory := "1G"
				if r.engine == hv.EngineProcess {
					memory = "4G" // what is reserved counts there, not what is touched
				}
				args := []string{"run", "--rm", "--engine", string(r.engine), "--memory", memory, "--cpu", "2", "--files", files,
					"--workdir", filepath.Join(guestRoot, "src", p.pkg), "--env", "GOROOT=" + guestRoot, "--", binary, "-test.v",
					"-test.timeout", stdlibLimit.String()}
				if !full {
					args = append(args, "-test.short")
				}
				var skips []string
				for name, why := range p.skip {
					skips = append(skips, "^"+name+"$")
					t.Logf("skipped %s.%s: %s", p.pkg, name, why)
				}
				if len(skips) > 0 {
					args = append(args, "-test.skip", strings.Join(skips, "|"))
				}
				cmd := r.command(args...)
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				err := runFor(cmd, stdlibLimit+time.Minute)
				passed := strings.Count(out.String(), "--- PASS")
				for _, line := range strings.Split(out.String(), "\n") {
					if strings.Contains(line, "--- SKIP") {
						t.Log(strings.TrimSpace(line))
					}
				}
				if err != nil || passed == 0 {
					t.Errorf("%v; %d tests passed\n%s", err, passed, failures(out.String()))
				}
				t.Logf("%d tests passed", passed)
			})
		}
	})
}

// needs are the files that a package's tests read outside of its own folder, relative to GOROOT.
var needs = map[string][]string{
	"time":           {"lib/time"},
	"compress/flate": {"src/compress/testdata", "src/testdata"},
	"image/png":      {"src/image/testdata"},
	"go/parser":      {"src/go/ast", "src/go/printer/nodes.go", "src/internal/types/testdata", "src/net/net.go"},
}

// copyTree copies a file or a folder with the regular files in it; what does not exist is nothing.
func copyTree(from, to string) error {
	st, err := os.Stat(from)
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return os.CopyFS(to, os.DirFS(from))
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// failures returns what a test's output says of failures, and its end.
func failures(out string) string {
	var b strings.Builder
	lines := strings.Split(out, "\n")
	for i, l := range lines {
		if strings.Contains(l, "--- FAIL") {
			fmt.Fprintln(&b, strings.Join(lines[max(0, i-3):min(len(lines), i+8)], "\n"))
		}
	}
	const tail = 30
	return b.String() + strings.Join(lines[max(0, len(lines)-tail):], "\n")
}
