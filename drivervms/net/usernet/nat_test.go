package usernet

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	grailnet "github.com/grailos/grail/drivervms/net"
)

// TestTarget: where guests may go is decided here alone.
func TestTarget(t *testing.T) {
	resolver := netip.MustParseAddrPort("127.0.0.53:53")
	for _, c := range []struct {
		dst, want string // want is empty where it goes nowhere
		loopback  bool
		resolvers []netip.AddrPort
	}{
		{dst: "192.0.2.1:80", want: "192.0.2.1:80"},
		{dst: "192.0.2.1:0"},
		{dst: "127.0.0.1:80"}, {dst: "127.0.0.1:80", loopback: true}, {dst: "127.255.255.255:53"}, {dst: "0.0.0.0:80"}, {dst: "0.1.2.3:80"},
		{dst: "169.254.169.254:80"}, {dst: "224.0.0.1:80"}, {dst: "255.255.255.255:67"}, {dst: "240.0.0.1:80"}, {dst: "[::1]:80"}, {dst: "[::ffff:127.0.0.1]:80"},
		{dst: "10.9.0.3:80"}, {dst: "10.9.0.255:80"}, {dst: "10.9.1.3:80", want: "10.9.1.3:80"},
		{dst: "10.9.0.254:80"}, {dst: "10.9.0.254:80", want: "127.0.0.1:80", loopback: true},
		{dst: "10.9.0.254:53"}, {dst: "10.9.0.254:53", loopback: true},
		{dst: "10.9.0.254:53", want: "127.0.0.53:53", resolvers: []netip.AddrPort{resolver}},
	} {
		n, err := New(testConfig(c.loopback, c.resolvers...), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := n.target(netip.MustParseAddrPort(c.dst))
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("%+v: %v, %v", c, got, ok)
		}
		n.Close()
	}
}

// TestOutward: much goes both ways at once, and the end of one direction is not that of the other.
func TestOutward(t *testing.T) {
	w := newWire(t, testConfig(true))
	l, at := listen(t)
	sent, answered := make([]byte, 3<<20), make([]byte, 2<<20)
	rand.Read(sent)
	rand.Read(answered)
	served := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go c.Write(answered)
		b, _ := io.ReadAll(c)
		served <- b
		c.Write([]byte("over"))
		c.Close()
	}()
	c, err := w.dial(at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, append(answered, "over"...)) {
		t.Errorf("the guest got %d bytes, %v", len(got), err)
	}
	if b := <-served; !bytes.Equal(b, sent) {
		t.Errorf("the host got %d bytes of %d", len(b), len(sent))
	}
}

// TestRefused: what the host refuses, and what is not allowed, the guest learns at once.
func TestRefused(t *testing.T) {
	w := newWire(t, testConfig(true))
	l, at := listen(t)
	l.Close()
	if c, err := w.dial(at); err == nil {
		c.Close()
		t.Error("a closed port was reached")
	}
	l, at = listen(t)
	n := newWire(t, testConfig(false))
	if c, err := n.dial(at); err == nil {
		c.Close()
		t.Error("the host's loopback was reached")
	}
	if s := n.nat.State(); s.Refused == 0 || s.TCP != 0 {
		t.Errorf("%+v", s)
	}
	// A reset is passed on as one.
	c, err := w.dial(at)
	if err != nil {
		t.Fatal(err)
	}
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	host.(*net.TCPConn).SetLinger(0)
	host.Close()
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after a reset: %v", err)
	}
}

func TestUDP(t *testing.T) {
	w := newWire(t, testConfig(true))
	at := netip.AddrPortFrom(testGateway, echoUDP(t, func(b []byte) []byte { return slices.Clone(b) }).Port())
	c := w.dialUDP(at)
	for _, n := range []int{1, 1472, 9000, 60000} {
		want := bytes.Repeat([]byte{byte(n)}, n)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, maxDatagram)
		if k, err := c.Read(b); err != nil || !bytes.Equal(b[:k], want) {
			t.Errorf("%d bytes: %d, %v", n, k, err)
		}
	}
	if s := w.nat.State(); s.UDP != 1 {
		t.Errorf("%+v", s)
	}
}

// TestDNS: queries go to the first resolver that answers.
func TestDNS(t *testing.T) {
	silent := netip.MustParseAddrPort("127.0.0.1:1") // refuses
	server := echoUDP(t, func(b []byte) []byte { return append([]byte("answer to "), b...) })
	w := newWire(t, testConfig(false, silent, server))
	c := w.dialUDP(netip.AddrPortFrom(testGateway, 53))
	if _, err := c.Write([]byte("query")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if k, err := c.Read(b); err != nil || string(b[:k]) != "answer to query" {
		t.Errorf("%q, %v", b[:k], err)
	}
}

// TestPublish brings clients of the host to the guest, by both protocols, and ends their connections when that is over.
func TestPublish(t *testing.T) {
	w := newWire(t, testConfig(false))
	own, to := addressOf(netip.AddrPortFrom(testGuest, 80)), netip.AddrPortFrom(testGuest, 80)
	l, err := gonet.ListenTCP(w.guest, own, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	u, err := gonet.DialUDP(w.guest, &own, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			k, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			u.WriteTo(b[:k], from)
		}
	}()
	hl, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hu, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.nat.Publish(grailnet.Publication{ID: "t", To: to}, file(t, hl.(*net.TCPListener))); err != nil {
		t.Fatal(err)
	}
	if err := w.nat.Publish(grailnet.Publication{ID: "u", UDP: true, To: to}, file(t, hu.(*net.UDPConn))); err != nil {
		t.Fatal(err)
	}
	if err := w.nat.Publish(grailnet.Publication{ID: "t", To: to}, file(t, hl.(*net.TCPListener))); err != nil || len(w.nat.State().Published) != 2 {
		t.Errorf("published twice: %v, %+v", err, w.nat.State())
	}
	if f := file(t, hl.(*net.TCPListener)); w.nat.Publish(grailnet.Publication{ID: "x"}, f) == nil {
		t.Error("nowhere is published")
	} else {
		f.Close()
	}
	// A duplicate of the socket is all that a next process needs.
	if fd, err := w.nat.Socket("t"); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
	if _, err := w.nat.Socket("nothing"); err == nil {
		t.Error("a socket of nothing")
	}
	hl.Close()
	hu.Close()

	echoes := func(c net.Conn, n int) {
		t.Helper()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		want, got := make([]byte, n), make([]byte, n)
		rand.Read(want)
		go c.Write(want)
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, a := range []net.Addr{hl.Addr(), hu.LocalAddr()} {
		n := 1 << 20
		if a.Network() == "udp" {
			n = 1400
		}
		for range 2 {
			c, err := net.Dial(a.Network(), a.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			echoes(c, n)
		}
	}
	c, err := net.Dial("tcp4", hl.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoes(c, 100)
	w.nat.Withdraw("t")
	w.nat.Withdraw("t")
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a connection outlived its port: %v", err)
	}
	if c, err := net.Dial("tcp4", hl.Addr().String()); err == nil {
		c.Close()
		t.Error("the port is still there")
	}
	// What the guest refuses ends with a reset, not with silence.
	hl, err = net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.nat.Publish(grailnet.Publication{ID: "closed", To: netip.AddrPortFrom(testGuest, 81)}, file(t, hl.(*net.TCPListener))); err != nil {
		t.Fatal(err)
	}
	defer hl.Close()
	c, err = net.Dial("tcp4", hl.Addr().String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a port that the guest has not: %v", err)
	}
}

// TestNext: the next NAT goes on with the same uplink. Old connections end, new ones work.
func TestNext(t *testing.T) {
	w := newWire(t, testConfig(true))
	l, at := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	old, err := w.dial(at)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	w.nat.Close()
	w.open(testConfig(true))
	c, err := w.dial(at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	c.Write([]byte("hello"))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	old.SetDeadline(time.Now().Add(30 * time.Second))
	old.Write([]byte("lost"))
	if _, err := old.Read(b); err == nil || isTimeout(err) {
		t.Errorf("an old connection: %v", err)
	}
}

// TestShare: a guest's flows are bounded, and others' are not by them.
func TestShare(t *testing.T) {
	f := flows{byGuest: map[netip.Addr]int{}}
	var release func()
	for i := range flowsPerGuest {
		if release = f.take(testGuest, i%2 == 0); release == nil {
			t.Fatalf("flow %d", i)
		}
	}
	if f.take(testGuest, false) != nil || f.refused != 1 {
		t.Error("beyond its share")
	}
	if f.take(testGateway, false) == nil {
		t.Error("another guest has none")
	}
	release()
	if f.take(testGuest, false) == nil {
		t.Error("what was given back is lost")
	}
	for i := 0; f.tcp+f.udp < maxFlows; i++ {
		f.take(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), true)
	}
	if f.take(netip.AddrFrom4([4]byte{10, 2, 0, 0}), true) != nil {
		t.Error("beyond all bounds")
	}
}
