package main

import (
	"fmt"
	"net"

	"github.com/grailos/grail/mgmt/api"
)

// What linux_net_tcp sends.
const (
	tcpMiB  = 16
	tcpPort = 5001
)

// receiver waits for one connection and takes what comes, in the background. It answers nothing, and must not end its half of the connection either: then the
// sender would end.
var receiver = []string{"sh", "-c", fmt.Sprintf("(sleep 100 | nc -l -p %d) </dev/null >/dev/null 2>&1 &", tcpPort)}

// sender connects, which it tries again until somebody listens, and sends until the other end has taken all.
func sender(to string) []string {
	return []string{"sh", "-c", fmt.Sprintf("n=0; until [ $n -gt 50 ]; do read a x </proc/uptime; dd if=/dev/zero bs=1M count=%d 2>/dev/null | nc %s %d && "+
		"read b x </proc/uptime && echo from $a to $b && exit; n=$((n+1)); sleep 0.1; done; exit 1", tcpMiB, to, tcpPort)}
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
		if plain[i], err = p.start(b.ctx, "", netdev); err != nil {
			return Result{}, err
		}
		defer plain[i].stop()
		if _, err := plain[i].run(b.ctx, "sh", "-c", fmt.Sprintf("ip link set eth0 address 02:00:00:00:00:0%d; ip addr add 10.99.0.%d/24 dev eth0; ip link set eth0 up", i+1, i+1)); err != nil {
			return Result{}, err
		}
	}
	ours := func() (float64, error) {
		if _, err := b.grailctl(append([]string{"exec", "ln-b", "--"}, receiver...)...); err != nil {
			return 0, err
		}
		out, err := b.grailctl(append([]string{"exec", "ln-a", "--"}, sender(v.Ports[1].Address.Addr().String())...)...)
		if err != nil {
			return 0, err
		}
		return perSecond(out, tcpMiB)
	}
	theirs := func() (float64, error) {
		if _, err := plain[1].run(b.ctx, receiver...); err != nil {
			return 0, err
		}
		out, err := plain[0].run(b.ctx, sender("10.99.0.2")...)
		if err != nil {
			return 0, err
		}
		return perSecond(out, tcpMiB)
	}
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
	r.note = fmt.Sprintf("one connection, %d MiB one way, busybox nc; four translated guests share the processors", tcpMiB)
	return r, nil
}
