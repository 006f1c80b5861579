package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/grailos/grail/images/nested/plan"
)

// fakeQEMU puts a script in front of PATH under QEMU's name.
func fakeQEMU(t *testing.T, script string) *machine {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, qemu), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return &machine{kernel: "k", initramfs: "i", results: filepath.Join(dir, "results"),
		console: filepath.Join(dir, "console"), kind: kinds[0], opt: &options{memoryMiB: 64, limit: time.Minute}}
}

// Two results, then the end of the machine as its first process wants it.
const good = `for a; do case $a in file:*) r=${a#file:} ;; esac; done
echo booting
echo '{"Name":"modules"}' >>"$r"
echo '{"Name":"one","Seconds":1.5,"Passed":3,"Skipped":[{"Test":"TestX","Reason":"no disk"}]}' >>"$r"
`

func TestMachinePasses(t *testing.T) {
	m := fakeQEMU(t, good+`echo '{"Name":"end"}' >>"$r"; exit 67`)
	if err := m.run(context.Background()); err != nil {
		t.Fatal(err)
	}
	one := &plan.Plan{Steps: []plan.Step{{Name: "one"}}}
	if !m.report(one) {
		t.Error("not passed")
	}
	if m.report(&plan.Plan{Steps: []plan.Step{{Name: "one"}, {Name: "two"}}}) {
		t.Error("passed, though a step is missing")
	}
	m = fakeQEMU(t, good+`exit 67`)
	if err := m.run(context.Background()); err != nil || m.report(one) {
		t.Errorf("%v, or passed without an end", err)
	}
	m = fakeQEMU(t, good+`echo '{"Name":"end"}' >>"$r"; echo '{"Name":"late","Error":"bad"}' >>"$r"; exit 69`)
	if err := m.run(context.Background()); err != nil || m.report(one) {
		t.Errorf("%v, or passed with a failed step", err)
	}
	m = fakeQEMU(t, good+`echo '{"Name":' >>"$r"; exit 67`)
	if err := m.run(context.Background()); err != nil || m.report(one) {
		t.Errorf("%v, or passed with a damaged result", err)
	}
}

func TestMachineFails(t *testing.T) {
	m := fakeQEMU(t, good+`echo 'Kernel panic - not syncing'`)
	err := m.run(context.Background())
	for _, want := range []string{"ended before its time", `last thing done was "one"`, "| Kernel panic - not syncing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q in it", err, want)
		}
	}
	m = fakeQEMU(t, "echo no such machine >&2; exit 1")
	if err := m.run(context.Background()); err == nil || !strings.Contains(err.Error(), "| no such machine") || !strings.Contains(err.Error(), "no step was done") {
		t.Error(err)
	}
	m = fakeQEMU(t, good+"exec sleep 60")
	m.opt.limit = 300 * time.Millisecond
	if err := m.run(context.Background()); err == nil || !strings.Contains(err.Error(), "stopped after 300ms") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.run(ctx); err != context.Canceled {
		t.Error(err)
	}
}

func TestDescribe(t *testing.T) {
	r := plan.Result{Name: "hv/sys", Seconds: 2, Error: "exit status 1", Passed: 1, Failed: []string{"TestA"},
		Output: strings.Repeat("line\r\n", 200) + strings.Repeat("x", 10000) + "\r\n"}
	got := describe(&r, false)
	for _, want := range []string{"FAIL hv/sys", "1 passed, 0 skipped, 1 failed", "failed TestA", "(141 lines more"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if strings.Contains(got, strings.Repeat("x", maxLine+1)) || strings.Contains(got, "\r") {
		t.Error("lines are not bounded")
	}
	if n := strings.Count(describe(&r, true), "\n"); n < 200 {
		t.Errorf("%d lines though all were asked for", n)
	}
}

func TestLibraryPattern(t *testing.T) {
	out := "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f01)\n" +
		"\tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n"
	var got []string
	for _, m := range library.FindAllStringSubmatch(out, -1) {
		got = append(got, m[1])
	}
	if want := "/lib/x86_64-linux-gnu/libc.so.6 /lib64/ld-linux-x86-64.so.2"; strings.Join(got, " ") != want {
		t.Errorf("%q, expected %s", got, want)
	}
}
