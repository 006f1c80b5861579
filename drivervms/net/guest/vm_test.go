package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netdriver "github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/guest"
	"github.com/grailos/grail/ring/virtionet"
)

// vmRig is where this program runs as a driver VM.
type vmRig struct {
	t       *testing.T
	engine  hv.Engine
	vmm     string
	program *os.File
	kvm     *os.File
	up      *netdriver.Uplink
}

// instance is one driver VM, and a control connection to it.
type instance struct {
	t      *testing.T
	proc   *hv.Process
	conn   *hv.Conn
	report *os.File
}

// build compiles a program of this module.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	c := exec.Command("go", "build", "-o", out, "github.com/grailos/grail/"+pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, b)
	}
	return out
}

func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func memoryOf(t *testing.T, size uint64) *os.File {
	t.Helper()
	f, err := hv.NewMemory("test", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// start starts an instance; it skips where VMs cannot be jailed.
func (r *vmRig) start() *instance {
	t := r.t
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	control, err := hv.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	i := &instance{t: t, report: memoryOf(t, 1<<20)}
	l := hv.NewLaunch(r.vmm, hv.Driver, "net0")
	l.Stderr = os.Stderr
	s := &l.Spec
	s.Engine, s.Argv, s.Env, s.MemoryBytes = r.engine, []string{"net"}, netdriver.Env, netdriver.MinMemory
	s.Program, s.KVM, s.Control, s.Report = l.Add(r.program), l.Add(r.kvm), l.Add(control), l.Add(i.report)
	s.HostStatus = l.Add(memoryOf(t, 4096))
	uplink := r.up.Cap()
	uplink.FD = l.Add(r.up.File)
	s.Caps = []hv.CapSpec{
		{Kind: abi.CapControl, Name: "control", Rights: abi.RightRead | abi.RightWrite, FD: -1},
		{Kind: abi.CapStatus, Name: "status", Rights: abi.RightRead | abi.RightWrite, FD: l.Add(memoryOf(t, abi.StatusSize)), Size: abi.StatusSize},
		uplink,
	}
	i.proc, err = l.Start()
	if errors.Is(err, hv.ErrNamespaces) {
		t.Skip("SKIPPED: needs namespaces:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.kill)
	if i.conn, err = hv.Dial(path); err != nil {
		t.Fatal(err)
	}
	if err := i.conn.SetTimeout(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	return i
}

// kill ends the instance as a crash of its process would, and reaps it.
func (i *instance) kill() {
	if i.conn == nil {
		return
	}
	i.conn.Close()
	i.conn = nil
	if err := i.proc.Kill(); err != nil {
		i.t.Error(err)
	}
	if err := i.proc.Wait(20 * time.Second); err != nil {
		i.t.Error(err)
	}
	i.proc.Close()
}

// try makes a control call.
func (i *instance) try(req hv.Request, fds ...int) (hv.Response, error) {
	resp, got, err := i.conn.Call(req, fds...)
	for _, fd := range got {
		unix.Close(fd)
	}
	return resp, err
}

// call makes a control call that must succeed.
func (i *instance) call(req hv.Request, fds ...int) hv.Response {
	i.t.Helper()
	resp, err := i.try(req, fds...)
	if err != nil {
		i.t.Fatalf("%v\n%s", err, i.readReport())
	}
	return resp
}

// readReport returns what the VM said at its end.
func (i *instance) readReport() []byte {
	b := make([]byte, 1<<18)
	n, err := i.report.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		i.t.Error(err)
	}
	return bytes.TrimRight(b[:n], "\x00")
}

// stats asks for the counters of an attachment.
func (i *instance) stats(id uint64) map[string]uint64 {
	i.t.Helper()
	resp := i.call(hv.Request{Op: hv.OpAsk, Message: &abi.Message{Type: abi.MsgStats, ID: id}})
	var c map[string]uint64
	if m := resp.Message; m == nil || m.Type != abi.MsgStats || m.ID != id || json.Unmarshal([]byte(m.Text), &c) != nil {
		i.t.Fatalf("%+v", resp.Message)
	}
	return c
}

// attachment turns what a driver is told into what grailvm is told, with the descriptors beside it.
func attachment(m abi.Message) (a *hv.Attachment, fds []int) {
	add := func(fd int32) int { fds = append(fds, int(fd)); return len(fds) - 1 }
	a = &hv.Attachment{ID: m.ID, Client: m.Attach.Client, Driver: "net0", Disk: m.Attach.Client, Config: m.Text, Features: m.Attach.Features, Log: -1}
	for _, r := range m.Attach.Regions {
		a.Regions = append(a.Regions, hv.AttachMem{FD: add(r.FD), Base: r.Base, Size: r.Size, Offset: r.Offset})
	}
	for _, q := range m.Attach.Queues {
		a.Queues = append(a.Queues, hv.AttachRing{Index: q.Index, Size: q.Size, LastAvail: q.LastAvail, Kick: add(q.KickFD), Call: add(q.CallFD),
			Desc: q.Desc, Avail: q.Avail, Used: q.Used})
	}
	return a, fds
}

// TestVM: the program as a driver VM on each engine: frames from port to port and through the uplink, counters, names, and all of
// it again after the VM was killed, or faulted, and the next one took the same rings.
func TestVM(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: builds programs and starts VMs")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("SKIPPED: needs the go command:", err)
	}
	dir := t.TempDir()
	vmm, program := build(t, dir, "hv/grailvm"), build(t, dir, "drivervms/net/guest")
	for _, engine := range []hv.Engine{hv.EngineKVM, hv.EngineProcess} {
		t.Run(string(engine), func(t *testing.T) {
			r := &vmRig{t: t, engine: engine, vmm: vmm, program: open(t, program, os.O_RDONLY)}
			if engine == hv.EngineKVM {
				kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
				if err != nil {
					t.Skip("SKIPPED, NO KVM:", err)
				}
				defer kvm.Close()
				r.kvm = kvm
			}
			r.run()
		})
	}
}

func (r *vmRig) run() {
	t := r.t
	up, far, err := netdriver.NewSocket(0)
	if err != nil {
		t.Fatal(err)
	}
	defer up.File.Close()
	defer far.Close()
	fd, err := unix.FcntlInt(far.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	stack := os.NewFile(uintptr(fd), "stack") // on which reads wait
	defer stack.Close()
	r.up = up
	if err := stack.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p1, p2 := testPort(1), testPort(2)
	n1, shared1, m1 := nic(t, p1)
	n2, shared2, m2 := nic(t, p2)
	defer shared1.Close()
	defer shared2.Close()
	a1, fds1 := attachment(m1)
	a2, fds2 := attachment(m2)

	const killed, faulted, detached = 0, 1, 2 // how each life ends
	for life := range 3 {
		i := r.start()
		// Port 2 comes first: what port 1 has sent before is for it.
		i.call(hv.Request{Op: hv.OpAttach, ID: a2.ID, Attachment: a2}, fds2...)
		i.call(hv.Request{Op: hv.OpAttach, ID: a1.ID, Attachment: a1}, fds1...)
		if life > 0 {
			r.catchUp(n1, n2)
		}
		before := map[uint64]map[string]uint64{}
		for _, id := range []uint64{0, a1.ID, a2.ID} {
			before[id] = i.stats(id)
		}
		since := func(id uint64) (tx, rx uint64) {
			c := i.stats(id)
			return c["txPackets"] - before[id]["txPackets"], c["rxPackets"] - before[id]["rxPackets"]
		}

		const rounds = 40 // more than the queues hold
		started := time.Now()
		for range rounds {
			there, back := frame(p2, p1, "there"), frame(p1, p2, "and back")
			if _, err := n1.Send(there); err != nil {
				t.Fatal(err)
			}
			receive(t, n2, there)
			if _, err := n2.Send(back); err != nil {
				t.Fatal(err)
			}
			receive(t, n1, back)

			out, in := frame(testPort(9), p1, "out"), frame(p2, testPort(9), "in")
			if _, err := n1.Send(out); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 2000)
			n, err := stack.Read(b)
			if want := string(make([]byte, virtionet.HeaderBytes)) + string(out); err != nil || string(b[:n]) != want {
				t.Fatalf("the uplink got % x, %v", b[:n], err)
			}
			if _, err := stack.Write(append(make([]byte, virtionet.HeaderBytes), in...)); err != nil {
				t.Fatal(err)
			}
			receive(t, n2, in)
		}
		t.Logf("%v a frame", time.Since(started)/(4*rounds))
		for id, want := range map[uint64][2]uint64{a1.ID: {2 * rounds, rounds}, a2.ID: {rounds, 2 * rounds}, 0: {rounds, rounds}} {
			if tx, rx := since(id); tx != want[0] || rx != want[1] {
				t.Errorf("attachment %d: %d and %d packets, want %v", id, tx, rx, want)
			}
		}
		for text, ok := range map[string]bool{`{"names": {"a b": "1.2.3.4"}}`: false, string(namesText(t)): true} {
			m := i.call(hv.Request{Op: hv.OpAsk, Message: &abi.Message{Type: abi.MsgNames, ID: 7, Text: text}}).Message
			if m == nil || m.Type != abi.MsgNames || m.ID != 7 || (m.Text == "") != ok {
				t.Errorf("%s: %+v", text, m)
			}
		}
		st := i.call(hv.Request{Op: hv.OpStatus}).Status
		if st == nil || st.State != hv.StateReady || len(st.Attached) != 2 || st.Beat == 0 || st.Stats.DevRequests == 0 {
			t.Errorf("%+v", st)
		}
		for _, missing := range st.JailMissing {
			t.Log("the jail lacks:", missing)
		}
		// The VM ends with these somewhere.
		lastWords := func() {
			for range atDeath {
				if _, err := n1.Send(frame(p2, p1, "last words")); err != nil {
					t.Fatal(err)
				}
			}
		}
		switch life {
		case killed:
			r.refusals(i, m1)
			lastWords()
		case faulted:
			lastWords()
			i.call(hv.Request{Op: hv.OpMessage, Message: &abi.Message{Type: abi.MsgInject, Text: "fault"}})
			lastWords()
			if err := i.proc.Wait(20 * time.Second); err != nil {
				t.Fatal(err)
			}
			var rep hv.Report
			if err := json.Unmarshal(i.readReport(), &rep); err != nil || r.engine == hv.EngineKVM && rep.Signal != int(unix.SIGSEGV) ||
				r.engine == hv.EngineProcess && (rep.Cause != hv.CauseExit || rep.Code != 2) ||
				!strings.Contains(strings.Join(rep.Console, "\n"), "told to misbehave: fault") {
				t.Errorf("%+v, %v", rep, err)
			}
		case detached:
			i.call(hv.Request{Op: hv.OpDetach, ID: a1.ID})
			i.call(hv.Request{Op: hv.OpDetach, ID: a2.ID})
		}
		i.kill()
	}
}

// atDeath is how many frames are sent at once shortly before or after the VM has died.
const atDeath = 5

// catchUp reads what was under way when the VM was gone: each frame came once, was lost, or comes twice.
func (r *vmRig) catchUp(from, to *guest.NIC) {
	r.t.Helper()
	marker, last := frame(testPort(2), testPort(1), "marker"), frame(testPort(2), testPort(1), "last words")
	if _, err := from.Send(marker); err != nil {
		r.t.Fatal(err)
	}
	bufs := [][]byte{make([]byte, 2000)}
	for n := 0; ; n++ {
		_, err := to.Pairs()[0].ReceiveWithin(bufs, 5*time.Second)
		if err == nil && bytes.Equal(bufs[0], marker) {
			r.t.Logf("%d of the last words arrived", n)
			return
		}
		if err != nil || !bytes.Equal(bufs[0], last) || n == 4*atDeath {
			r.t.Fatalf("frame %d: % x, %v", n, bufs[0], err)
		}
	}
}

func namesText(t *testing.T) []byte {
	b, err := json.Marshal(vswitch.Names{Names: map[string]netip.Addr{"web": netip.MustParseAddr("10.0.0.3")}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refusals asks for what must be refused, and leaves no trace.
func (r *vmRig) refusals(i *instance, m abi.Message) {
	t := r.t
	for name, change := range map[string]func(a *hv.Attachment){
		"a port that is served": func(*hv.Attachment) {},
		"no configuration":      func(a *hv.Attachment) { a.Config = "" },
		"too much of it":        func(a *hv.Attachment) { a.Config = string(make([]byte, hv.MaxConfig+1)) },
		"an odd one":            func(a *hv.Attachment) { a.Config = "]" },
	} {
		a, fds := attachment(m)
		a.ID = 77
		change(a)
		if _, err := i.try(hv.Request{Op: hv.OpAttach, ID: a.ID, Attachment: a}, fds...); err == nil {
			t.Errorf("%s: attached", name)
		}
	}
	if _, err := i.try(hv.Request{Op: hv.OpAsk}); err == nil {
		t.Error("no question was answered")
	}
}
