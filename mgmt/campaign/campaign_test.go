package main

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/engine"
)

// The short form of the campaign of "make test-crash".
func TestCampaign(t *testing.T) {
	bin := t.TempDir()
	for out, pkg := range map[string]string{
		"grailctl": "mgmt/grailctl", "graild": "mgmt/graild", "grailvm": "hv/grailvm", "drivers/blk": "drivervms/blk/guest",
		"examples/verify": "personalities/native/examples/verify",
	} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(bin, out), "github.com/grailos/grail/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, b)
		}
	}
	for _, e := range []hv.Engine{hv.EngineKVM, hv.EngineProcess} {
		t.Run(string(e), func(t *testing.T) {
			if e == hv.EngineKVM {
				f, err := engine.KVM()
				if err != nil {
					t.Skip("SKIPPED, NO ENGINE:", err)
				}
				f.Close()
			}
			c := &campaign{bin: bin, crashes: 15, engine: string(e), seed: rand.Uint64(), out: t.Output()}
			if err := c.run(t.Context()); err != nil {
				if strings.Contains(err.Error(), "namespace") {
					t.Skip("SKIPPED:", err)
				}
				t.Fatal(err)
			}
		})
	}
}
