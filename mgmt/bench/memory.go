package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/grailos/grail/hv"
)

// startMemory measures the host memory of a VM that has printed and waits on its standard input, without what its guest
// has touched: guest memory, and the program's file.
func startMemory(b *bench) ([]Result, error) {
	program, err := b.example("hello")
	if err != nil {
		return nil, err
	}
	var total, guests []float64
	ours := func() (float64, error) {
		u, err := b.idleUsage(program)
		total, guests = append(total, mib(u.total)), append(guests, mib(u.guest))
		return mib(u.total - u.guest), err
	}
	a, _, err := inTurn(b, "start_native_rss_mib", b.rounds(5, 11), ours, nil)
	if err != nil {
		return nil, err
	}
	r := newResult("start_native_rss_mib", "MiB", less, a, "", nil)
	r.bar.most = 8
	r.note = fmt.Sprintf("proportional share (Pss) of everything that the VM's process has mapped, its own program included, %.1f MiB, less %.1f MiB that the guest touched",
		median(total), median(guests))
	return []Result{r}, nil
}

func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }

// idleUsage starts a VM, waits for its first output and looks at its memory.
func (b *bench) idleUsage(program string) (usage, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return usage{}, err
	}
	defer inW.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		return usage{}, err
	}
	defer outR.Close()
	g, err := b.startGuest(program, []string{"-wait"}, helloMemory, inR, outW)
	inR.Close()
	outW.Close()
	if err != nil {
		return usage{}, err
	}
	// The last line of the environment is the last that it prints.
	out := bufio.NewReader(outR)
	for {
		line, err := out.ReadString('\n')
		if err != nil {
			g.kill()
			return usage{}, fmt.Errorf("output of %s: %w", program, err)
		}
		if strings.Contains(line, "LANG=") {
			break
		}
	}
	u, err := usageOf(g.proc.PID, program, b.engine)
	inW.Close()
	_, _ = io.Copy(io.Discard, out)
	if _, werr := g.wait(); err == nil {
		err = werr
	}
	return u, err
}

// usage is a process's share of host memory, in bytes.
type usage struct {
	total uint64 // all mappings
	guest uint64 // guest memory, and the guest's program
}

// usageOf reads /proc/PID/smaps (proc(5)). Guest memory is what the VMM has reserved without swap (nr) and excluded from
// core dumps (dd), and what it does not keep from a fork (dp) as it does its own tables.
func usageOf(pid int, program string, e hv.Engine) (u usage, err error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps")
	if err != nil {
		return u, err
	}
	defer f.Close()
	if e != hv.EngineKVM {
		return u, fmt.Errorf("%w: guest memory is told apart on engine kvm only", errSkipped)
	}
	var mapped string // file of the mapping at hand
	var pss uint64
	found := false
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			mapped = strings.Join(fields[5:], " ")
		case len(fields) == 3 && fields[0] == "Pss:":
			kib, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				return u, fmt.Errorf("smaps: %w", err)
			}
			pss = kib << 10
			u.total += pss
		case len(fields) > 0 && fields[0] == "VmFlags:":
			ram := mapped == "" && slices.Contains(fields, "nr") && slices.Contains(fields, "dd") && !slices.Contains(fields, "wf")
			found = found || ram
			if ram || mapped == program {
				u.guest += pss
			}
		}
	}
	if !found {
		return u, fmt.Errorf("no guest memory among the mappings of process %d", pid)
	}
	return u, nil
}
