//go:build linux && amd64

package process

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// BenchmarkStart measures from Start to the guest's first output, and to the return of Start.
func BenchmarkStart(b *testing.B) {
	for _, guest := range []struct {
		name    string
		program *os.File
		argv    []string
	}{
		{"go", goProgram(b), []string{"goguest", "hello"}},
		{"c", cProgram(b, "-static"), []string{"cguest", "hello"}},
	} {
		for _, noTrace := range []bool{false, true} {
			b.Run(fmt.Sprint(guest.name, "/untraced=", noTrace), func(b *testing.B) {
				var first, started time.Duration
				for b.Loop() {
					begin := time.Now()
					s := start(b, Config{Program: guest.program, Argv: guest.argv, NoTrace: noTrace}, []byte{})
					started += time.Since(begin)
					s.serve()
					first += s.first.Sub(begin)
					s.g.Close()
				}
				b.ReportMetric(first.Seconds()*1e3/float64(b.N), "ms-to-output")
				b.ReportMetric(started.Seconds()*1e3/float64(b.N), "ms-to-exec")
			})
		}
		b.Run(guest.name+"/host-process", func(b *testing.B) {
			for b.Loop() {
				if out, err := exec.Command(guest.program.Name(), guest.argv[1:]...).Output(); err != nil || len(out) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCalls lets the C guest measure itself, as a guest and as a host process (where the forwarded call is an unknown one).
func BenchmarkCalls(b *testing.B) {
	for _, test := range []struct {
		name, n string
		units   []string
	}{
		{"ping", "50000", []string{"ns/forwarded-call"}},
		{"futexes", "50000", []string{"ns/futex-ping-pong"}},
		{"natives", "300000", []string{"ns/sched_yield", "ns/futex-wake"}},
	} {
		report := func(b *testing.B, out string, total []float64) {
			for i, f := range strings.Fields(out) {
				var v float64
				fmt.Sscan(f, &v)
				total[i] += v
			}
		}
		b.Run(test.name+"/guest", func(b *testing.B) {
			total := make([]float64, len(test.units))
			for b.Loop() {
				s := start(b, Config{Program: cProgram(b, "-static"), Argv: []string{"cguest", test.name, test.n}}, []byte{})
				s.onNr[0x4700] = func(c *Call) { s.ret(c, c.Args[0]) }
				s.serve()
				report(b, s.out.String(), total)
				s.g.Close()
			}
			for i, u := range test.units {
				b.ReportMetric(total[i]/float64(b.N), u)
			}
		})
		b.Run(test.name+"/host", func(b *testing.B) {
			total := make([]float64, len(test.units))
			for b.Loop() {
				out, err := exec.Command(cProgram(b, "-static").Name(), test.name, test.n).Output()
				if err != nil {
					b.Fatal(err)
				}
				report(b, string(out), total)
			}
			for i, u := range test.units {
				b.ReportMetric(total[i]/float64(b.N), u)
			}
		})
	}
}
