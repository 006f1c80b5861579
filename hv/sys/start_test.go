package sys

import (
	"os"
	"testing"
	"time"

	"github.com/grailos/grail/hv/vfs"
)

// BenchmarkStart measures a small Go program from nothing to its end, by phase.
func BenchmarkStart(b *testing.B) {
	program := build(b, `package main
import "os"
func main() { os.Stdout.WriteString("hello\n") }`)
	kvmFD := openKVM(b)
	var setUp, load, all time.Duration
	for b.Loop() {
		f, err := os.Open(program)
		if err != nil {
			b.Fatal(err)
		}
		t0 := time.Now()
		table, err := vfs.New(vfs.Config{Stdin: -1, Stdout: -1, Stderr: -1, Log: [2]int{-1, -1}, Files: -1, Program: int(f.Fd()), ProgramName: "hello"})
		if err != nil {
			b.Fatal(err)
		}
		g, err := New(Config{KVM: kvmFD, MemoryBytes: 64 << 20, Program: f, Argv: []string{"hello"}, Table: table})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		end := g.Run()
		t2 := time.Now()
		if end.Code != 0 {
			b.Fatal(end)
		}
		setUp += t1.Sub(t0)
		load += t2.Sub(t1)
		all += t2.Sub(t0)
		table.Close()
		g.machine.Close()
		f.Close()
	}
	n := float64(b.N)
	b.ReportMetric(setUp.Seconds()*1e3/n, "setup-ms/op")
	b.ReportMetric(load.Seconds()*1e3/n, "run-ms/op")
}
