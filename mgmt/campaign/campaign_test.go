package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/engine"
)

// The short form of the campaign of "make test-crash".
func TestCampaign(t *testing.T) {
	bin := t.TempDir()
	build(t, bin, map[string]string{
		"grailctl": "mgmt/grailctl", "graild": "mgmt/graild", "grailvm": "hv/grailvm", "drivers/blk": "drivervms/blk/guest",
		"examples/verify": "personalities/native/examples/verify",
	})
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

// The short form of the campaign of "make test-linux".
func TestLinuxCampaign(t *testing.T) {
	for _, p := range append([]string{"qemu-system-x86_64", "busybox"}, tools...) {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED: %v; images/setup test installs it", err)
		}
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the emulated machine is an x86-64")
	}
	bin := t.TempDir()
	build(t, bin, map[string]string{
		"grailctl": "mgmt/grailctl", "graild": "mgmt/graild", "grailvm": "hv/grailvm", "grailport": "hv/grailport", "drivers/blk": "drivervms/blk/guest",
		"drivers/net": "drivervms/net/guest", "graillinux": "personalities/linux/graillinux", "guests/amd64/grail-init": "personalities/linux/agent/init",
	})
	c := &campaign{bin: bin, cache: "../../build", systems: true, crashes: 5, engine: string(hv.EngineProcess), seed: rand.Uint64(), out: t.Output()}
	if err := c.run(t.Context()); err != nil {
		if strings.Contains(err.Error(), "namespace") || strings.Contains(err.Error(), "apt") {
			t.Skip("SKIPPED:", err)
		}
		t.Fatal(err)
	}
}

// build builds programs of Grail in bin.
func build(t *testing.T, bin string, programs map[string]string) {
	t.Helper()
	for out, pkg := range programs {
		cmd := exec.Command("go", "build", "-o", filepath.Join(bin, out), "github.com/grailos/grail/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, b)
		}
	}
}

// The short form of the campaign of "make campaign".
func TestFaultCampaign(t *testing.T) {
	bin := t.TempDir()
	build(t, bin, map[string]string{
		"grailctl": "mgmt/grailctl", "graild": "mgmt/graild", "grailvm": "hv/grailvm", "drivers/blk": "drivervms/blk/guest",
		"drivers/net": "drivervms/net/guest", "drivers/console": "drivervms/console/guest",
		"examples/verify": "personalities/native/examples/verify", "examples/netcheck": "personalities/native/examples/netcheck",
	})
	results := filepath.Join(t.TempDir(), "campaign.json")
	c := &faults{campaign: &campaign{bin: bin, seed: rand.Uint64N(maxSeed), out: t.Output()}, count: 12, limit: 2 * time.Minute, rigs: 2,
		among: kinds, results: results, keep: "../../build/campaign"}
	if err := c.run(t.Context()); err != nil {
		if strings.Contains(err.Error(), "namespace") {
			t.Skip("SKIPPED:", err)
		}
		t.Fatal(err)
	}
	var got struct {
		Seed   uint64
		Faults []row
	}
	b, err := os.ReadFile(results)
	if err == nil {
		err = json.Unmarshal(b, &got)
	}
	if err != nil || len(got.Faults) != 12 || got.Seed != c.seed {
		t.Errorf("campaign.json: %v, %d rows, seed %d", err, len(got.Faults), got.Seed)
	}
}
