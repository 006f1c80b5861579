package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// loopback brings lo up.
func loopback() error {
	l, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// linkWait is how long an interface is awaited.
const linkWait = 10 * time.Second

// setNetwork does what n says.
func (m *machine) setNetwork(n *agent.Network) error {
	failed := []error{setNames(n)}
	for i := range n.Interfaces {
		if err := m.setInterface(&n.Interfaces[i]); err != nil {
			failed = append(failed, fmt.Errorf("network: %w", err))
		}
	}
	return errors.Join(failed...)
}

func (m *machine) setInterface(i *agent.Interface) error {
	var link netlink.Link
	err := await(linkWait, func() (err error) {
		link, err = findLink(i)
		return err
	})
	if err != nil {
		return err
	}
	if i.MTU > 0 {
		if err := netlink.LinkSetMTU(link, i.MTU); err != nil {
			return fmt.Errorf("MTU %d: %w", i.MTU, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", link.Attrs().Name, err)
	}
	old, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	var want []*netlink.Addr
	for _, p := range i.Addresses {
		want = append(want, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Flags: unix.IFA_F_NODAD})
	}
	for _, a := range old {
		if !a.IP.IsLinkLocalUnicast() && !slices.ContainsFunc(want, func(w *netlink.Addr) bool { return w.IPNet.String() == a.IPNet.String() }) {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove %v: %w", a.IPNet, err)
			}
		}
	}
	for _, a := range want {
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("address %v: %w", a.IPNet, err)
		}
	}
	for _, r := range i.Routes {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: r.To.Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), r.To.Addr().BitLen())}}
		if r.Via.IsValid() {
			route.Gw = r.Via.AsSlice()
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route to %v: %w", r.To, err)
		}
	}
	if i.Gateway.IsValid() {
		zero := make([]byte, i.Gateway.BitLen()/8)
		all := &net.IPNet{IP: zero, Mask: zero}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: i.Gateway.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("gateway %v: %w", i.Gateway, err)
		}
	}
	return nil
}

// findLink returns the interface that i means.
func findLink(i *agent.Interface) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	var mac net.HardwareAddr
	if i.MAC != "" {
		if mac, err = net.ParseMAC(i.MAC); err != nil {
			return nil, err
		}
	}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case a.Flags&net.FlagLoopback != 0:
		case mac != nil && !bytes.Equal(a.HardwareAddr, mac):
		case mac == nil && i.Name != "" && a.Name != i.Name:
		default:
			return l, nil
		}
	}
	return nil, fmt.Errorf("interface %s%s: %w", i.MAC, i.Name, os.ErrNotExist)
}

// setNames sets the guest's own name, and how it finds others'.
func setNames(n *agent.Network) error {
	var failed []error
	if n.Hostname != "" {
		failed = append(failed, unix.Sethostname([]byte(n.Hostname)), writeEtc("hostname", n.Hostname+"\n"))
	}
	if n.Hostname != "" || len(n.Hosts) > 0 {
		failed = append(failed, writeEtc("hosts", hostsFile(n)))
	}
	if len(n.DNS) > 0 || len(n.Search) > 0 {
		failed = append(failed, writeEtc("resolv.conf", resolvFile(n)))
	}
	return errors.Join(failed...)
}

func hostsFile(n *agent.Network) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	if n.Hostname != "" {
		fmt.Fprintf(&b, "127.0.1.1 %s\n", n.Hostname)
	}
	for _, address := range slices.Sorted(maps.Keys(n.Hosts)) {
		fmt.Fprintf(&b, "%s %s\n", address, strings.Join(n.Hosts[address], " "))
	}
	return b.String()
}

func resolvFile(n *agent.Network) string {
	var b strings.Builder
	if len(n.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(n.Search, " "))
	}
	for _, s := range n.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// writeEtc writes a file below /etc. If the disk cannot be written to, the file is kept in memory and mounted over the disk's.
func writeEtc(name, content string) error {
	path := "/etc/" + name
	err := os.MkdirAll("/etc", 0o755)
	if err == nil {
		if st, statErr := os.Lstat(path); statErr == nil && st.Mode()&os.ModeSymlink != 0 {
			err = os.Remove(path) // to a file of a service that does not run here
		}
	}
	if err == nil {
		if err = os.WriteFile(path, []byte(content), 0o644); err == nil {
			return nil
		}
	}
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	kept := "/run/grail/" + name
	if err := os.MkdirAll("/run/grail", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(kept, []byte(content), 0o644); err != nil {
		return err
	}
	if err := unix.Mount(kept, path, "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
		return fmt.Errorf("mount over %s: %w", path, err)
	}
	return nil
}
