package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
)

// TestLinuxPublish serves a file from a Linux VM to a client on the host, on a published port, while the switch is crashed, the way out of the
// host is killed, and graild is. The guest reaches a server of the host's outwards, and nothing of its loopback; a guest of another
// tenant reaches nobody.
func TestLinuxPublish(t *testing.T) {
	r := linuxRig(t)
	port := freePort(t)
	published := fmt.Sprintf("127.0.0.1:%d", port)
	r.ctl("driver", "create", "net", "net0", "--subnet", "10.88.0.0/24", "--port", "web=1", "--port", "stranger=2", "--uplink", "user")
	r.ctl("create", "--personality", "linux", "--memory", "128M", "--cpu", "1", "--name", "web", "--net", "net0/web", "--publish", fmt.Sprintf("%d:80", port))
	r.ctl("create", "--personality", "linux", "--memory", "128M", "--cpu", "1", "--name", "stranger", "--net", "net0/stranger", "--publish", published+":81")
	r.ctl("start", "web")
	// The port is taken, which the VM's start says before there is a VM.
	if out, code := r.runWithin(linuxLimit, nil, "start", "stranger"); code != 125 || !strings.Contains(out, "is taken by VM web") {
		t.Errorf("a port that is taken: exit code %d, %s", code, out)
	}
	r.ctl("rm", "stranger")
	r.ctl("create", "--personality", "linux", "--memory", "128M", "--cpu", "1", "--name", "stranger", "--net", "net0/stranger")
	r.ctl("start", "stranger")
	in := func(vm, script string) (string, int) {
		t.Helper()
		return r.runWithin(linuxLimit, nil, "exec", vm, "--", "sh", "-c", script)
	}
	const size = 12 << 20
	want, code := in("web", fmt.Sprintf("mkdir /tmp/www && head -c %d /dev/urandom >/tmp/www/file && httpd -h /tmp/www && sha256sum </tmp/www/file", size))
	if code != 0 {
		t.Fatalf("the server: %d, %s", code, want)
	}
	fetch := func(disturb func(part int)) {
		t.Helper()
		got, err := download("http://"+published+"/file", size, disturb)
		if err != nil || !strings.HasPrefix(want, got) {
			t.Errorf("fetched %s, want %s: %v", got, want, err)
		}
	}
	fetch(nil)
	// A connection outlives the switch, as often as that dies, and graild.
	fetch(func(part int) {
		switch part {
		case 1:
			r.ctl("driver", "crash", "net0", "--how", "kill")
		case 2:
			r.ctl("driver", "crash", "net0", "--how", "fault")
			// Without graild nobody would replace it, and the rest of the file would not come.
			r.eventually("the switch", func() bool { d := r.driver("net0"); return d.State == api.Ready && d.Generation >= 3 })
		case 3:
			r.killDaemon()
		case 4:
			r.ctl("driver", "crash", "net0", "--how", "kill") // by the next graild
		}
	})
	if out := r.ctl("ps"); !strings.Contains(out, published+":80") {
		t.Errorf("ps:\n%s", out)
	}

	// Without its far end the uplink is made again, which is not kept secret.
	nat := r.driver("net0").NAT
	if nat == nil || nat.PID == 0 || nat.Ends != 0 || len(nat.Published) != 1 {
		t.Fatalf("%+v", nat)
	}
	if err := unix.Kill(nat.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	fetch(nil)
	r.eventually("the end of the NAT process is told", func() bool { return r.driver("net0").NAT.Ends == 1 })

	outside, loopback := serveText(t, hostAddress(t)), serveText(t, "127.0.0.1")
	if out, code := in("web", "timeout 20 wget -q -O - http://"+outside); code != 0 || out != "from the host" {
		t.Errorf("outwards: exit code %d, %q", code, out)
	}
	_, loopbackPort, _ := strings.Cut(loopback, ":")
	if out, code := in("web", "timeout 5 wget -q -O - http://10.88.0.254:"+loopbackPort); code == 0 {
		t.Errorf("the host's loopback: %q", out)
	}
	for _, script := range []string{"timeout 2 wget -q -O - http://10.88.0.2/file", "timeout 2 wget -q -O - http://10.88.0.254:" + fmt.Sprint(port)} {
		if out, code := in("stranger", script); code == 0 {
			t.Errorf("another tenant: %s: %.200q", script, out)
		}
	}
	r.ctlWithin(linuxLimit, "rm", "-f", "web", "stranger")
	if c, err := net.DialTimeout("tcp", published, time.Second); err == nil {
		c.Close()
		t.Error("the port is still there")
	}
}

// freePort returns a port that nobody listens on, for now.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// hostAddress returns an address of this host that is not its loopback's.
func hostAddress(t *testing.T) string {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("SKIPPED: this host has no address but its loopback's")
	return ""
}

// serveText serves a text by HTTP, for the length of the test.
func serveText(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "from the host") })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// download fetches a file over one connection with little room for what was not read yet, and returns its SHA-256. disturb, if not nil, is called
// between the parts, of which there are 6.
func download(url string, size int64, disturb func(part int)) (string, error) {
	dial := func(network, address string) (net.Conn, error) {
		c, err := net.DialTimeout(network, address, 10*time.Second)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return c, err
	}
	client := &http.Client{Transport: &http.Transport{Dial: dial, DisableKeepAlives: true}, Timeout: 2 * time.Minute}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	h := sha256.New()
	const parts = 6
	for part := range parts {
		n, err := io.CopyN(h, resp.Body, size/parts)
		if err != nil {
			return "", fmt.Errorf("part %d: %d bytes: %w", part, n, err)
		}
		if disturb != nil {
			disturb(part)
		}
	}
	if n, err := io.Copy(h, resp.Body); err != nil {
		return "", fmt.Errorf("the rest: %d bytes: %w", n, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
