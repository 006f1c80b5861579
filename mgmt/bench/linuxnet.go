package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/grailos/grail/mgmt/api"
)

// How long linux_net_tcp sends, in seconds, and where to.
const (
	tcpSeconds = 2
	tcpPort    = 5001
)

// receiver waits for one connection and counts what comes, in the background. It answers nothing, and must not end its half of the connection either: then
// the sender would end.
var receiver = []string{"sh", "-c", fmt.Sprintf("rm -f /tmp/got; (sleep 600 | nc -l -p %d | wc -c >/tmp/got) </dev/null >/dev/null 2>&1 &", tcpPort)}

// received waits for what the receiver has counted.
var received = []string{"sh", "-c", "until [ -s /tmp/got ]; do sleep 0.1; done; cat /tmp/got"}

// sender connects, which it tries again until somebody listens, sends for a time, and ends when the other end has taken all.
func sender(to string) []string {
	return []string{"sh", "-c", fmt.Sprintf("n=0; until [ $n -gt 50 ]; do read a x </proc/uptime; timeout %d dd if=/dev/zero bs=64k 2>/dev/null | nc %s %d && "+
		"read b x </proc/uptime && echo from $a to $b && exit; n=$((n+1)); sleep 0.1; done; exit 1", tcpSeconds, to, tcpPort)}
}

// transfer has one guest send to the other and returns the rate in MiB/s. to and from run programs in the guests.
func transfer(to, from func(argv ...string) (string, error), address string) (float64, error) {
	if _, err := to(receiver...); err != nil {
		return 0, err
	}
	took, err := from(sender(address)...)
	if err != nil {
		return 0, err
	}
	got, err := to(received...)
	if err != nil {
		return 0, err
	}
	bytes, err := strconv.Atoi(strings.TrimSpace(got))
	if err != nil || bytes == 0 {
		return 0, fmt.Errorf("the receiver got %q", got)
	}
	rate, err := perSecond(took, bytes)
	return rate / (1 << 20), err
}

// linuxNet measures TCP from one Linux VM to another through the switch, against two plain QEMUs that are joined by QEMU's own socket back end.
func (b *bench) linuxNet(p *plainQEMU) (Result, error) {
	d, err := b.startDaemon()
	if err != nil {
		return Result{}, err
	}
	v, err := d.CreateDriver(b.ctx, api.CreateDriver{Config: api.DriverConfig{
		Name: "lnet", Type: "net", Engine: b.engine, MemoryBytes: driverMemory, HeartbeatMs: int(heartbeat.Milliseconds()),
		Ports: []api.Port{{Name: "a"}, {Name: "b"}}, Socket: true,
	}})
	if err != nil {
		return Result{}, err
	}
	defer b.removeDriver("lnet")
	for _, port := range []string{"a", "b"} {
		if _, err := b.grailctl("create", "--personality", "linux", "--name", "ln-"+port, "--net", "lnet/"+port); err != nil {
			return Result{}, err
		}
		defer func() {
			if _, err := b.grailctl("rm", "-f", "ln-"+port); err != nil {
				b.progress("%v", err)
			}
		}()
		if _, err := b.grailctl("start", "ln-"+port); err != nil {
			return Result{}, err
		}
	}
	// A free port of the host's; that somebody takes it meanwhile would be an error of the peer's start.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Result{}, err
	}
	at := l.Addr().String()
	l.Close()
	var plain [2]*plainVM
	for i, netdev := range []string{"socket,listen=" + at, "socket,connect=" + at} {
		if plain[i], err = p.start(b.ctx, p.nic(netdev)...); err != nil {
			return Result{}, err
		}
		defer plain[i].stop()
		if _, err := plain[i].run(b.ctx, "sh", "-c", fmt.Sprintf("ip link set eth0 address 02:00:00:00:00:0%d; ip addr add 10.99.0.%d/24 dev eth0; ip link set eth0 up", i+1, i+1)); err != nil {
			return Result{}, err
		}
	}
	in := func(name string) func(argv ...string) (string, error) {
		return func(argv ...string) (string, error) {
			return b.grailctl(append([]string{"exec", name, "--"}, argv...)...)
		}
	}
	peer := func(v *plainVM) func(argv ...string) (string, error) {
		return func(argv ...string) (string, error) { return v.run(b.ctx, argv...) }
	}
	ours := func() (float64, error) { return transfer(in("ln-b"), in("ln-a"), v.Ports[1].Address.Addr().String()) }
	theirs := func() (float64, error) { return transfer(peer(plain[1]), peer(plain[0]), "10.99.0.2") }
	for _, warm := range []func() (float64, error){ours, theirs} {
		if _, err := warm(); err != nil {
			return Result{}, err
		}
	}
	a, q, err := inTurn(b, "linux_net_tcp", b.rounds(5, 9), ours, theirs)
	if err != nil {
		return Result{}, err
	}
	same := func(v float64) float64 { return v }
	r := newResult("linux_net_tcp", "MiB/s", more, values(a, same), "two plain QEMUs, -netdev socket", values(q, same))
	r.bar.ratio = 1
	r.note = fmt.Sprintf("one connection, %d s one way, busybox nc; the guests are translated", tcpSeconds)
	return r, nil
}
