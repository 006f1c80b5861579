package vswitch

import (
	"encoding/binary"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// leaseTime is what a client is told. Its address never changes; the lease makes it ask now and then.
const leaseTime = time.Hour

// answerDHCP answers with the port's configured address (RFC 2131).
func (s *Switch) answerDHCP(q *txQueue, f *frame) Reason {
	p := q.p
	payload := f.datagram(s.scratch[:])
	if payload == nil {
		return DropService
	}
	s.Served++
	answer := dhcpAnswer(&p.cfg, payload)
	if answer == nil {
		return DropService
	}
	d := datagramTo{dst: f.src, src: serviceKey, srcIP: number(p.cfg.server().As4()), dstIP: p.ip, srcPort: 67, dstPort: 68}
	if binary.BigEndian.Uint16(answer[10:])&0x8000 != 0 { // the client cannot take unicast yet
		d.dst, d.dstIP = broadcast, 0xffffffff
	}
	if len(answer) > replyBytes-ethHeader-28 {
		return DropService
	}
	s.inject(p, q.index, d.frame(s.scratch[:], answer))
	return Delivered
}

// dhcpAnswer returns the answer to the request in b, or nil when there is none to give. It does not panic, whatever is in b and
// whatever the library makes of it.
func dhcpAnswer(c *PortConfig, b []byte) (answer []byte) {
	defer func() {
		if recover() != nil {
			answer = nil
		}
	}()
	req, err := dhcpv4.FromBytes(b)
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest || req.HWType != iana.HWTypeEthernet ||
		len(req.ClientHWAddr) != len(c.MAC) || MAC(req.ClientHWAddr) != c.MAC {
		return nil
	}
	ip, server := net.IP(c.Addr.Addr().AsSlice()), net.IP(c.server().AsSlice())
	kind := dhcpv4.MessageTypeAck
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if id := req.ServerIdentifier(); id != nil && !id.Equal(server) {
			return nil // it chose another server
		}
		want := req.RequestedIPAddress()
		if want == nil {
			want = req.ClientIPAddr
		}
		if !want.Equal(ip) {
			kind = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
	default:
		return nil
	}
	mods := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithReply(req), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server)),
	}
	if kind != dhcpv4.MessageTypeNak {
		mods = append(mods, c.lease(req.MessageType() == dhcpv4.MessageTypeInform)...)
	} else {
		mods = append(mods, dhcpv4.WithBroadcast(true))
	}
	rep, err := dhcpv4.New(mods...)
	if err != nil {
		return nil
	}
	return rep.ToBytes()
}

// lease returns what the client is told.
func (c *PortConfig) lease(inform bool) []dhcpv4.Modifier {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithNetmask(net.CIDRMask(c.Addr.Bits(), 32)),
		dhcpv4.WithOption(dhcpv4.OptHostName(c.Name)),
		dhcpv4.WithOption(dhcpv4.OptDomainName(c.Domain)),
		dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, c.MTU)),
	}
	if !inform {
		mods = append(mods, dhcpv4.WithYourIP(c.Addr.Addr().AsSlice()), dhcpv4.WithOption(dhcpv4.OptIPAddressLeaseTime(leaseTime)))
	}
	if c.Gateway.IsValid() {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRouter(c.Gateway.AsSlice())))
	}
	if dns := c.Service; dns.IsValid() || c.Upstream.IsValid() {
		if !dns.IsValid() {
			dns = c.Upstream
		}
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptDNS(dns.AsSlice())))
	}
	return mods
}
