package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// TestDPDK has DPDK's virtio-user, a vhost-user front end that nobody here wrote, answer pings through the switch while that is crashed. Its memory cannot be
// sealed, so that a driver which was not told to admit such clients refuses it.
func TestDPDK(t *testing.T) {
	program, err := exec.LookPath("dpdk-testpmd")
	if err != nil {
		t.Skip("SKIPPED: dpdk-testpmd is not here (package dpdk-dev)")
	}
	r := newRig(t, hv.EngineProcess)
	r.ctl("driver", "create", "net", "strict", "--engine", string(r.engine), "--port", "dpdk")
	r.ctl("driver", "create", "net", "net0", "--engine", string(r.engine), "--unsealed", "--port", "dpdk", "--port", "vm")
	// start runs one that echoes on a driver's port, until the test's end or stop is called. said is what it prints.
	start := func(driver string) (stop func(), said func() string) {
		t.Helper()
		p := r.driver(driver).Ports[0]
		dir := t.TempDir()
		// Two threads, since one of testpmd's waits for its end; they may run anywhere.
		cmd := exec.Command(program, "--no-huge", "-m", "128", "--no-pci", "--no-telemetry", "--no-shconf", "--file-prefix="+driver, "--lcores", "0@0,1@0",
			"--main-lcore", "0", "--log-level", "lib.eal:6", fmt.Sprintf("--vdev=net_virtio_user0,path=%s,mac=%s,queues=1,queue_size=256", p.Socket, p.MAC),
			"--", "--auto-start", "--forward-mode=icmpecho", "--total-num-mbufs=2048", "--no-lsc-interrupt")
		cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "RUNTIME_DIRECTORY="+dir)
		out, err := os.Create(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd.Stdout, cmd.Stderr = out, out
		said = func() string {
			b, err := os.ReadFile(out.Name())
			if err != nil {
				t.Error(err)
			}
			return string(b)
		}
		stdin, err := cmd.StdinPipe() // it ends when this does
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stopped := false
		stop = func() {
			if stopped {
				return
			}
			stopped = true
			stdin.Close()
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("testpmd said:\n%s", said())
			}
		}
		t.Cleanup(stop)
		return stop, said
	}
	stop, said := start("strict")
	r.eventually("a client whose memory can shrink is refused", func() bool {
		return strings.Contains(said(), "replied NACK to request type (5)") // SET_MEM_TABLE
	})
	stop()

	start("net0")
	r.eventually("testpmd's queues are served", func() bool {
		d := r.driver("net0")
		return len(d.Clients) == 2 && d.Clients[0].Attached && d.Clients[1].Attached
	})
	for i, how := range []string{"", "kill", "fault"} {
		if how != "" {
			r.ctl("driver", "crash", "net0", "--how", how)
			r.eventually("recovered from "+how, func() bool { d := r.driver("net0"); return d.State == api.Ready && d.Generation == i+1 })
		}
		if out := r.ctl(r.netcheck("vm", "ping", "10.77.0.2")...); strings.Count(out, "answer from 10.77.0.2") != 3 {
			t.Errorf("ping after %q: %q", how, out)
		}
	}
	var stats api.DriverStats
	if err := json.Unmarshal([]byte(r.ctl("driver", "stats", "net0", "--json")), &stats); err != nil || len(stats.Clients) != 1 {
		t.Fatalf("stats: %v, %+v", err, stats)
	}
	if c := stats.Clients[0]; c.Disk != "dpdk" || c.Counters["txPackets"] < 3 || c.Counters["rxPackets"] < 3 {
		t.Errorf("stats: %+v", c)
	}
}
