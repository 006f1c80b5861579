package daemon

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	grailnet "github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/ring/virtionet"
)

// insideNet is set for a test that runs in a network namespace of its own.
const insideNet = "GRAIL_TEST_IN_NETNS"

// inNetNS runs the calling test again in a process with a network of its own, and reports whether this is that process.
func inNetNS(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideNet) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: taps need root")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), insideNet+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if i := bytes.Index(out, []byte("SKIPPED")); i >= 0 {
		line, _, _ := bytes.Cut(out[i:], []byte("\n"))
		t.Skip(string(line))
	}
	return false
}

// buildNAT builds grailnat for the rig.
func buildNAT(t *testing.T) {
	t.Helper()
	for program, pkg := range map[string]string{"grailnat": "drivervms/net/grailnat", "grailport": "hv/grailport"} {
		build := exec.Command("go", "build", "-o", filepath.Join(os.Getenv("GRAIL_LIBEXEC"), program), "github.com/grailos/grail/"+pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile builds it: its jail takes no other
		if b, err := build.CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: cannot build %s: %v\n%s", program, err, b)
		}
	}
}

// netDriver makes a net driver over the fake program.
func (r *rig) netDriver(name, uplink string) (api.Driver, error) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(os.Getenv("GRAIL_LIBEXEC"), "drivers", "net"), []byte("serve"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return r.client.CreateDriver(ctx(r.t), api.CreateDriver{Config: api.DriverConfig{Name: name, Type: "net", Engine: hv.EngineProcess, Socket: true,
		MemoryBytes: 64 << 20, Subnet: "10.99.0.0/24", Ports: []api.Port{{Name: "web"}}, Uplink: uplink}})
}

// tables returns the names of the host's IPv4 tables.
func tables(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		t.Skipf("SKIPPED: this host has no nftables: %v", err)
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	return strings.Join(names, " ")
}

// TestTap makes a driver with a tap in a network of the test's own: the tap is the guests' gateway, has NAT outwards, stays with graild's
// successor, and goes with the driver.
func TestTap(t *testing.T) {
	if !inNetNS(t) {
		return
	}
	tables(t)
	r := newRig(t)
	buildNAT(t)
	d, err := r.netDriver("net0", "tap:grail0")
	if err != nil && strings.Contains(err.Error(), "/dev/net/tun") {
		t.Skipf("SKIPPED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName("grail0")
	if err != nil || link.Attrs().HardwareAddr.String() != grailnet.GatewayMAC.String() || link.Attrs().Flags&net.FlagUp == 0 {
		t.Fatalf("%+v, %v", link, err)
	}
	if list, err := netlink.AddrList(link, netlink.FAMILY_V4); err != nil || len(list) != 1 || list[0].IPNet.String() != "10.99.0.254/24" {
		t.Errorf("addresses %v, %v", list, err)
	}
	table := tablePrefix + r.d.store.ID + "-net0"
	if got := tables(t); got != table {
		t.Errorf("tables %q, want %q", got, table)
	}
	if d, err = r.client.Driver(ctx(t), "net0"); err != nil || d.NAT == nil || d.NAT.PID == 0 || len(d.NAT.Missing) == 0 && tapLacks() != nil {
		t.Errorf("%+v, %v", d.NAT, err)
	}

	// The host's kernel is at the other end of what the driver VM has.
	asked := askGateway(t, r)
	if !bytes.Contains(asked, grailnet.GatewayMAC[:]) {
		t.Errorf("the gateway's answer is % x", asked)
	}
	r.close()
	r.open()
	eventually(t, "adopted", func() bool {
		d, err := r.client.Driver(ctx(t), "net0")
		return err == nil && d.State == api.Ready && d.NAT.PID != 0 && d.NAT.Ends == 0
	})
	if asked = askGateway(t, r); !bytes.Contains(asked, grailnet.GatewayMAC[:]) {
		t.Errorf("after graild's restart the gateway's answer is % x", asked)
	}
	if err := r.d.RemoveDriver("net0", true); err != nil {
		t.Fatal(err)
	}
	if got := tables(t); got != "" {
		t.Errorf("tables %q stayed", got)
	}
	eventually(t, "the tap is gone", func() bool {
		_, err := netlink.LinkByName("grail0")
		return err != nil
	})

	// An operator's own is used as it is, and stays.
	own := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "own0"}, Mode: netlink.TUNTAP_MODE_TAP}
	if err := netlink.LinkAdd(own); err != nil {
		t.Fatal(err)
	}
	for _, f := range own.Fds {
		f.Close()
	}
	if _, err := r.netDriver("net1", "tap:own0"); err != nil {
		t.Fatal(err)
	}
	if got := tables(t); got != "" {
		t.Errorf("rules for an operator's tap: %q", got)
	}
	if err := r.d.RemoveDriver("net1", true); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.LinkByName("own0"); err != nil {
		t.Errorf("the operator's tap: %v", err)
	}
	// What is no tap is refused, and nothing stays behind.
	if _, err := r.netDriver("net2", "tap:lo"); err == nil || !strings.Contains(err.Error(), "an uplink is a tap device") {
		t.Errorf("a loopback device: %v", err)
	}
	if list := r.d.Drivers(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

// askGateway sends an ARP request for the gateway into the driver VM's end of the uplink, and returns the answer.
func askGateway(t *testing.T, r *rig) []byte {
	t.Helper()
	dr, err := r.d.driver("net0")
	if err != nil {
		t.Fatal(err)
	}
	near := rawFD(dr.uplink.near.File)
	b := make([]byte, virtionet.HeaderBytes)
	guest := []byte{2, 0, 0, 0, 0, 9}
	b = append(append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), guest...)
	b = append(b, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, guest...), 10, 99, 0, 2, 0, 0, 0, 0, 0, 0, 10, 99, 0, 254)
	if _, err := unix.Write(near, b); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		poll := []unix.PollFd{{Fd: int32(near), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 1000); n == 0 {
			continue
		}
		n, err := unix.Read(near, buf)
		if err != nil && err != unix.EAGAIN {
			t.Fatal(err)
		}
		if n > virtionet.HeaderBytes+14 && buf[virtionet.HeaderBytes+12] == 8 && buf[virtionet.HeaderBytes+13] == 6 {
			return buf[virtionet.HeaderBytes:n]
		}
	}
	t.Error("the gateway does not answer")
	return nil
}

// TestNAT: the way out in user mode is replaced when its process dies, and says so; adopted with its ports by the next graild; and gone with the driver.
func TestNAT(t *testing.T) {
	r := newRig(t)
	buildNAT(t)
	d, err := r.netDriver("net0", "user")
	if err != nil {
		t.Fatal(err)
	}
	if d.NAT == nil || d.NAT.PID == 0 || d.NAT.Gateway != "10.99.0.254" {
		t.Fatalf("%+v", d.NAT)
	}
	p, err := api.ParsePublish("0.0.0.0:" + fmt.Sprint(takenPort(t)) + ":80")
	if err != nil {
		t.Fatal(err)
	}
	cfg := api.VMConfig{Name: "web", Nets: []api.NetRef{{Driver: "net0", Port: "web"}}, Publish: []api.Publish{p}}
	if _, err := r.d.publish(cfg); api.KindOf(err) != api.Busy || !strings.Contains(err.Error(), "another program") {
		t.Errorf("a port that is taken: %v", err)
	}
	cfg.Publish[0].Address = netip.MustParseAddrPort("192.0.2.1:8080")
	if _, err := r.d.publish(cfg); api.KindOf(err) != api.Invalid || !strings.Contains(err.Error(), "no address of this host") {
		t.Errorf("an address of another host: %v", err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	cfg.Publish[0].Address = netip.MustParseAddrPort(at)
	withdraw, err := r.d.publish(cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := func(ends int) func() bool {
		return func() bool {
			d, err = r.client.Driver(ctx(t), "net0")
			if err != nil || d.NAT.PID == 0 || d.NAT.Ends != ends || len(d.NAT.Published) != 1 {
				return false
			}
			dr, _ := r.d.driver("net0")
			dr.mu.Lock()
			n := dr.nat
			dr.mu.Unlock()
			if n == nil {
				return false
			}
			answer, _, err := n.call(grailnet.NATRequest{Op: grailnet.NATStatus})
			return err == nil && len(answer.State.Published) == 1
		}
	}
	eventually(t, "published", served(0))
	before := d.NAT.PID
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp4", at) // waits in the queue of the socket
	if err != nil {
		t.Errorf("while there is no NAT process: %v", err)
	} else {
		c.Close()
	}
	eventually(t, "replaced", served(1))
	if d.NAT.LastEnd == "" || d.NAT.PID == before {
		t.Errorf("%+v", d.NAT)
	}
	withdraw()
	if c, err := net.Dial("tcp4", at); err == nil {
		c.Close()
		t.Error("the port is still there")
	}

	// The next graild goes on with the process, and withdraws what nobody wants.
	if withdraw, err = r.d.publish(cfg); err != nil {
		t.Fatal(err)
	}
	pid := d.NAT.PID
	r.close()
	r.open()
	eventually(t, "adopted", func() bool {
		d, err := r.client.Driver(ctx(t), "net0")
		return err == nil && d.NAT.PID == pid && d.NAT.Ends == 0
	})
	eventually(t, "nobody's port is withdrawn", func() bool {
		c, err := net.Dial("tcp4", at)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	// A graild whose predecessor's NAT process died meanwhile starts another one.
	r.close()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.open()
	eventually(t, "replaced by the next graild", func() bool {
		d, err := r.client.Driver(ctx(t), "net0")
		return err == nil && d.State == api.Ready && d.NAT.PID != 0 && d.NAT.PID != pid
	})
	if err := r.d.RemoveDriver("net0", true); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(d.NAT.PID, 0); err == nil && d.NAT.PID != pid {
		t.Error("the NAT process outlived its driver")
	}
}

// takenPort returns a port that somebody listens on.
func takenPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func TestResolvers(t *testing.T) {
	text := "# nameserver 1.1.1.1\nsearch a\nnameserver\nnameserver 127.0.0.53\nnameserver ::1\nnameserver x\n nameserver\t192.0.2.1 trailing\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"
	got := parseResolvers(text)
	if fmt.Sprint(got) != "[127.0.0.53:53 192.0.2.1:53 192.0.2.2:53]" {
		t.Errorf("%v", got)
	}
	if a := distantResolver(got); a.String() != "192.0.2.1" {
		t.Errorf("%v", a)
	}
	if a := distantResolver(nil); a.IsValid() {
		t.Errorf("%v", a)
	}
}
