// Package fakevm stands in for grailvm in tests: it keeps the control contract without an engine, so that the daemon and
// the CLI can be tested on any host.
package fakevm

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/state"
)

// Main runs a grailvm without an engine; it does not return. A program is one line of text, or, when it is an ELF file,
// its arguments are. Personalities understand: "exit N", "cat", "say WORDS", "wait", "ignore", "io N" (N requests,
// one after the other), "shy N" (the same without ringing the driver), "lie" (breaks the rules of its ring) and
// "memory", "use N" (MiB, of which it gives back what it is asked for) "hoard N" (which gives nothing and ends of it) and
// "hog" (whose VMM uses all memory that it can get). Drivers serve rings by copying the available index to the used index, and note that in their state region; "broken" ones end at once,
// and "superstitious" ones when they find that a predecessor noted anything.
//
// A personality that is told to "gorge" uses up memory without end once it is sent a signal, or "gorge N" MiB.
func Main() { (&fakeVM{}).main() }

// fakeVM is one run.
type fakeVM struct {
	spec    hv.Spec
	started time.Time

	mu            sync.Mutex
	attached      map[uint64]*fakeClient
	dead          []string
	hang          bool
	superstitious bool
	beat          uint64
	requests      uint64
	signals       chan int
	memory        hv.MemoryState // and what is used of it
	hoards        bool
	state         *state.Log // from the first client on
	eaten         [][]byte
}

type fakeClient struct {
	att hv.Attachment
	fds []int
}

func (v *fakeVM) main() {
	v.started = time.Now()
	v.signals = make(chan int, 8)
	v.attached = map[uint64]*fakeClient{}
	if err := json.NewDecoder(os.NewFile(hv.SpecFD, "spec")).Decode(&v.spec); err != nil {
		fmt.Fprintln(os.Stderr, "fake:", err)
		os.Exit(1)
	}
	b := make([]byte, 100)
	n, _ := unix.Pread(v.spec.Program, b, 0)
	f := strings.Fields(string(b[:n]))
	if strings.HasPrefix(f[0], "\x7fELF") {
		f = v.spec.Argv[1:]
	}
	if v.spec.Kind == hv.Driver && len(f) == 0 {
		f = []string{"serve"}
	}
	if len(f) == 0 {
		v.end(hv.Report{Cause: hv.CauseSetup, Message: "nothing to do"})
	}
	v.superstitious = f[0] == "superstitious"
	v.ownRings()
	if f[0] == "broken" {
		v.end(hv.Report{Cause: hv.CauseExit, Code: 9})
	}
	go v.control()
	if v.spec.Kind == hv.Driver {
		v.drive()
	}
	v.run(f)
}

// end writes the report and exits.
func (v *fakeVM) end(r hv.Report) {
	r.Name, r.Started, r.Ended, r.Console = v.spec.Name, v.started, time.Now(), []string{"last words"}
	_ = json.NewEncoder(os.NewFile(uintptr(v.spec.Report), "report")).Encode(r)
	os.Exit(0)
}

func (v *fakeVM) run(f []string) {
	arg := func() int {
		n, err := strconv.Atoi(f[len(f)-1])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch f[0] {
	case "exit":
		v.end(hv.Report{Cause: hv.CauseExit, Code: arg()})
	case "cat":
		_, err := io.Copy(os.NewFile(uintptr(v.spec.Stdout), "stdout"), os.NewFile(uintptr(v.spec.Stdin), "stdin"))
		if err != nil {
			v.end(hv.Report{Cause: hv.CauseExit, Code: 1})
		}
	case "say":
		fmt.Fprintln(os.NewFile(uintptr(v.spec.Stdout), "stdout"), strings.Join(f[1:], " "))
		fmt.Fprintln(os.NewFile(uintptr(v.spec.Log[0]), "log"), strings.Join(f[1:], " "))
	case "wait":
		v.end(hv.Report{Cause: hv.CauseSignal, Signal: <-v.signals})
	case "ignore":
		select {}
	case "hog":
		for keep := [][]byte{}; ; {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
	case "use", "hoard":
		v.mu.Lock()
		v.memory.Used, v.hoards = uint64(arg())<<20, f[0] == "hoard"
		v.mu.Unlock()
		v.end(hv.Report{Cause: hv.CauseSignal, Signal: <-v.signals})
	case "memory":
		v.end(hv.Report{Cause: hv.CauseMemory})
	case "gorge":
		<-v.signals
		most := -1
		if len(f) > 1 {
			most = arg()
		}
		v.gorge(most)
		v.end(hv.Report{Cause: hv.CauseSignal, Signal: <-v.signals})
	case "io", "shy":
		a := v.spec.Attachments[0]
		for range arg() {
			avail := get16(&a, nil, a.Queues[0].Avail+2) + 1
			put16(&a, nil, a.Queues[0].Avail+2, avail)
			if f[0] == "io" {
				_, _ = unix.Write(a.Queues[0].Kick, binary.NativeEndian.AppendUint64(nil, 1))
			}
			for get16(&a, nil, a.Queues[0].Used+2) != avail {
				poll := []unix.PollFd{{Fd: int32(a.Queues[0].Call), Events: unix.POLLIN}}
				_, _ = unix.Poll(poll, 100)
				drain(a.Queues[0].Call)
			}
		}
	case "lie":
		a := v.spec.Attachments[0]
		put16(&a, nil, a.Queues[0].Avail+2, 9999)
		_, _ = unix.Write(a.Queues[0].Kick, binary.NativeEndian.AppendUint64(nil, 1))
		select {}
	}
	v.end(hv.Report{Cause: hv.CauseExit})
}

// ownRings has the VM reach what it alone may write of its grants: the descriptors in its attachments are its drivers'. Both stand in the same order.
func (v *fakeVM) ownRings() {
	next := 0
	for _, c := range v.spec.Caps {
		if c.Kind != abi.CapRings {
			continue
		}
		v.spec.Attachments[next].Regions[0].FD = c.FD
		next++
	}
}

// gorge uses up so many MiB of memory; below 0: all that there is.
func (v *fakeVM) gorge(mib int) {
	for len(v.eaten) != mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		v.eaten = append(v.eaten, b)
	}
}

func drain(fd int) {
	var b [8]byte
	_, _ = unix.Read(fd, b[:])
}

// region finds the file and offset of an address.
func region(a *hv.Attachment, fds []int, addr uint64) (int, int64) {
	for _, r := range a.Regions {
		if addr >= r.Base && addr < r.Base+r.Size {
			fd := r.FD
			if fds != nil {
				fd = fds[fd]
			}
			return fd, int64(addr - r.Base + r.Offset)
		}
	}
	panic("address outside the grant")
}

func get16(a *hv.Attachment, fds []int, addr uint64) uint16 {
	var b [2]byte
	fd, off := region(a, fds, addr)
	_, _ = unix.Pread(fd, b[:], off)
	return binary.LittleEndian.Uint16(b[:])
}

func put16(a *hv.Attachment, fds []int, addr uint64, n uint16) {
	fd, off := region(a, fds, addr)
	_, _ = unix.Pwrite(fd, binary.LittleEndian.AppendUint16(nil, n), off)
}

// drive serves the attached rings when it is rung.
func (v *fakeVM) drive() {
	status := -1
	for _, c := range v.spec.Caps {
		if c.Kind == abi.CapStatus {
			status = c.FD
		}
	}
	for {
		v.mu.Lock()
		poll := []unix.PollFd{{Fd: -1}}
		for _, c := range v.attached {
			for _, q := range c.att.Queues {
				poll = append(poll, unix.PollFd{Fd: int32(c.fds[q.Kick]), Events: unix.POLLIN})
			}
		}
		v.mu.Unlock()
		n, _ := unix.Poll(poll, 5) // also to see new attachments
		v.mu.Lock()
		if v.hang {
			v.mu.Unlock()
			select {}
		}
		if n > 0 {
			v.beat++
			for _, c := range v.attached {
				v.serve(c)
			}
			_, _ = unix.Pwrite(status, binary.LittleEndian.AppendUint64(nil, v.beat), abi.StatusBeat)
			_, _ = unix.Pwrite(status, binary.LittleEndian.AppendUint64(nil, v.requests), abi.StatusRequests)
		}
		v.mu.Unlock()
	}
}

// takeOver makes the state region the driver's own. The caller holds v.mu.
func (v *fakeVM) takeOver() {
	for _, c := range v.spec.Caps {
		if c.Kind != abi.CapState || v.state != nil {
			continue
		}
		mem, err := unix.Mmap(c.FD, 0, int(c.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			v.end(hv.Report{Cause: hv.CauseSetup, Message: err.Error()})
		}
		var taken state.Taken
		if v.state, taken, err = state.Open(mem, 1, func(uint16, []byte) {}); err != nil {
			v.end(hv.Report{Cause: hv.CauseSetup, Message: err.Error()})
		}
		if v.superstitious && taken.Items+taken.Records > 0 {
			v.end(hv.Report{Cause: hv.CauseExit, Code: 13})
		}
		v.state.Start(func(put state.Put) { put(1, binary.LittleEndian.AppendUint64(nil, v.requests)) })
	}
}

// serve completes what a client asks for. The caller holds v.mu.
func (v *fakeVM) serve(c *fakeClient) {
	for _, q := range c.att.Queues {
		drain(c.fds[q.Kick])
		avail, used := get16(&c.att, c.fds, q.Avail+2), get16(&c.att, c.fds, q.Used+2)
		switch n := avail - used; {
		case n > q.Size:
			v.dead = append(v.dead, "available index out of range")
			delete(v.attached, c.att.ID)
		case n > 0:
			v.requests += uint64(n)
			v.state.Append(1, binary.LittleEndian.AppendUint64(nil, v.requests))
			put16(&c.att, c.fds, q.Used+2, avail)
			_, _ = unix.Write(c.fds[q.Call], binary.NativeEndian.AppendUint64(nil, 1))
		}
	}
}

func (v *fakeVM) control() {
	for {
		fd, _, err := unix.Accept4(v.spec.Control, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		go func() {
			c := hv.NewConn(fd)
			defer c.Close()
			for {
				var req hv.Request
				fds, err := c.Receive(&req)
				if err != nil {
					return
				}
				resp, send := v.answer(req, fds)
				if c.Send(resp, send...) != nil {
					return
				}
			}
		}()
	}
}

func (v *fakeVM) answer(req hv.Request, fds []int) (resp hv.Response, send []int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch req.Op {
	case hv.OpStatus:
		resp.Status = &hv.Status{Name: v.spec.Name, State: hv.StateReady, Engine: v.spec.Engine, Beat: v.beat, Dead: v.dead,
			Attached: slices.Sorted(maps.Keys(v.attached)), Stats: hv.Stats{MemoryBytes: v.spec.MemoryBytes, MemoryUsed: v.memory.Used, Memory: v.memory}}
	case hv.OpReserve:
		v.spec.ReservedBytes, v.memory.Prefaulted = req.Reserve, req.Reserve
	case hv.OpReclaim:
		resp.Reclaimed = v.reclaim(req.Reclaim)
	case hv.OpAttach:
		if v.hang {
			v.mu.Unlock()
			select {}
		}
		if v.attached[req.ID] != nil {
			resp.Error = "attachment is already served"
			return resp, nil
		}
		v.takeOver()
		c := &fakeClient{att: *req.Attachment, fds: fds}
		v.attached[req.ID] = c
		_, _ = unix.Write(fds[c.att.Queues[0].Kick], binary.NativeEndian.AppendUint64(nil, 1))
	case hv.OpDetach, hv.OpRevoke:
		delete(v.attached, req.ID)
	case hv.OpAttachments:
		for _, a := range v.spec.Attachments {
			a.Regions, a.Queues = slices.Clone(a.Regions), slices.Clone(a.Queues)
			a.Descriptors(func(fd *int) {
				send = append(send, *fd)
				*fd = len(send) - 1
			})
			resp.Attachments = append(resp.Attachments, a)
		}
	case hv.OpMessage:
		switch req.Message.Text {
		case "hang":
			v.hang = true
		case "fault":
			v.end(hv.Report{Cause: hv.CauseSignal, Signal: 11, Fault: &hv.Fault{Vector: 14, Signal: 11, Address: 0,
				Regs: map[string]uint64{"rip": 0x401000}, Code: []byte{0xc6, 0x00, 0x2a}, Frames: []uint64{0x402000}}})
		}
	case hv.OpSignal:
		v.signals <- req.Signal
	case hv.OpKill:
		v.end(hv.Report{Cause: hv.CauseStop})
	}
	return resp, send
}

// reclaim gives back what is asked for, at once. The caller holds v.mu.
func (v *fakeVM) reclaim(r *hv.Reclaim) *hv.Reclaimed {
	bound, target := r.Resolve(v.spec.MemoryBytes, v.spec.ReservedBytes)
	out := &hv.Reclaimed{Bound: bound, Target: target, Before: v.memory.Used, After: v.memory.Used, Told: true}
	if v.hoards && v.memory.Used > bound {
		v.end(hv.Report{Cause: hv.CauseMemory, Message: "it did not give"})
	}
	out.After = min(v.memory.Used, target)
	out.Given = v.memory.Used - out.After
	v.memory.Used = out.After
	v.memory.Given += out.Given
	if v.memory.Bound = bound; bound == v.spec.MemoryBytes {
		v.memory.Bound = 0
	}
	return out
}
