package daemon

import (
	"bytes"
	"errors"
	"fmt"
	stdnet "net"
	"net/netip"
	"os"
	"regexp"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/mgmt/api"
)

// tapForm is what an interface's name may be (IFNAMSIZ is 16, with the terminating zero).
var tapForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}$`)

// openTap opens a driver's tap. One that is there belongs to the operator and is used as it is. Otherwise it is made, as the guests' gateway with
// NAT outwards, and goes when the last process that has it open ends.
func (dr *driver) openTap(name string) (*net.Uplink, error) {
	subnet, err := netip.ParsePrefix(dr.rec.Config.Subnet)
	if err != nil {
		return nil, err
	}
	_, err = netlink.LinkByName(name)
	if err == nil {
		u, err := net.OpenTap(name)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "%v; an uplink is a tap device that this user may open and nobody has open", err)
		}
		return u, nil
	}
	var missing netlink.LinkNotFoundError
	if !errors.As(err, &missing) {
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	if os.Geteuid() != 0 {
		return nil, api.Errorf(api.Invalid, "there is no tap device %s, and to make it graild would have to run as root; make it with ip tuntap add %s mode tap user …, or use --uplink user", name, name)
	}
	u, err := net.OpenTap(name)
	if err != nil {
		return nil, err
	}
	if err := setUpTap(name, netip.PrefixFrom(lastAddress(subnet), subnet.Bits())); err == nil {
		err = addNAT(dr.natTable(), name, subnet)
	}
	if err != nil {
		u.File.Close()
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return u, nil
}

// setUpTap gives a tap its address and switches it on.
func setUpTap(name string, gateway netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, stdnet.HardwareAddr(net.GatewayMAC[:])); err != nil {
		return fmt.Errorf("hardware address: %w", err)
	}
	own := &netlink.Addr{IPNet: &stdnet.IPNet{IP: gateway.Addr().AsSlice(), Mask: stdnet.CIDRMask(gateway.Bits(), 32)}}
	if err := netlink.AddrAdd(link, own); err != nil {
		return fmt.Errorf("address %s: %w", gateway, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch on: %w", err)
	}
	return nil
}

// natTable is the name of the driver's own table of nftables.
func (dr *driver) natTable() string { return tablePrefix + dr.d.store.ID + "-" + dr.name() }

// tablePrefix begins the names of all tables of ours.
const tablePrefix = "grail-"

// addNAT makes a table of nftables, in place of one of that name, by which what comes from subnet and leaves by another interface than the tap leaves in
// the host's name.
func addNAT(table, tap string, subnet netip.Prefix) error {
	if err := removeNAT(table); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: table})
	chain := c.AddChain(&nftables.Chain{Name: "outwards", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource})
	mask := stdnet.CIDRMask(subnet.Bits(), 32)
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		// ip saddr SUBNET
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: subnet.Addr().AsSlice()},
		// oifname != TAP
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifname(tap)},
		&expr.Masq{},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: table %s: %w", table, err)
	}
	return nil
}

// ifname is an interface's name as nftables compares it: with zeros up to IFNAMSIZ.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// removeNAT removes a table that addNAT has made, if there is one.
func removeNAT(table string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	list, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range list {
		if t.Name == table {
			c.DelTable(t)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: table %s: %w", table, err)
	}
	return nil
}

// forgetTap removes what the driver's tap has left in the host's network. The tap itself goes with its descriptors.
func (dr *driver) forgetTap() {
	kind, err := uplinkOf(&dr.rec.Config)
	if err != nil || kind.kind != tapUplink || os.Geteuid() != 0 {
		return
	}
	if err := removeNAT(dr.natTable()); err != nil {
		dr.d.log.Error("the driver's NAT rules stay", "driver", dr.name(), "table", dr.natTable(), "error", err)
	}
}

// forwardSwitch says whether the host forwards what is not for itself.
const forwardSwitch = "/proc/sys/net/ipv4/ip_forward"

// tapLacks says what keeps the guests behind a tap from the outside, in words; nil if nothing is known to.
func tapLacks() []string {
	if b, err := os.ReadFile(forwardSwitch); err == nil && len(bytes.TrimSpace(b)) > 0 && bytes.TrimSpace(b)[0] == '0' {
		return []string{"the way beyond this host: it forwards nothing (net.ipv4.ip_forward is 0); sysctl net.ipv4.ip_forward=1 changes that"}
	}
	return nil
}
