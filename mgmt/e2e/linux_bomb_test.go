package e2e

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"
)

// A guest kernel's processes are its own affair: a shell that forks without end, at first one by one and then twofold, holds up nobody else, and its VM can be
// looked at and ended.
func TestLinuxForkBomb(t *testing.T) {
	r := linuxRig(t)
	r.ctl("create", "--personality", "linux", "--name", "bomb", "--memory", "128M")
	r.ctl("start", "bomb")
	shell := r.command("exec", "bomb", "--", "sh", "-c", "n=0; while [ $n -lt 200 ]; do sleep 1000 & n=$((n+1)); done; echo lit; b() { b | b & }; b; sleep 1000")
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(linuxLimit, func() { _ = shell.Process.Kill() })
	defer timer.Stop()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "lit\n" {
		t.Fatalf("%q, %v\n%s", line, err, r.ctl("logs", "bomb"))
	}
	go io.Copy(io.Discard, out)
	for range 3 {
		r.ctl(r.guest(nil, "echo")...)
	}
	if out := r.ctl("inspect", "bomb"); !strings.Contains(out, "state        running") {
		t.Errorf("%s", out)
	}
	r.ctl("stop", "-t", "0", "bomb")
	_ = shell.Wait() // however it takes its VM's end
	r.ctl("rm", "bomb")
	r.ctl(r.guest(nil, "echo")...)
}
