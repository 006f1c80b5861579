package vswitch

import "encoding/binary"

// arpBytes is the length of an ARP packet for Ethernet and IPv4 (RFC 826).
const arpBytes = 28

// arp is an ARP packet for Ethernet and IPv4.
type arp struct {
	op                 uint16
	sender, target     uint64 // MAC
	senderIP, targetIP uint32
}

// arpOf returns the ARP packet in f, and false when it is for other protocols.
func arpOf(f *frame) (a arp, ok bool) {
	b := f.head[ethHeader:]
	be := binary.BigEndian
	if be.Uint16(b) != 1 || be.Uint16(b[2:]) != etherIPv4 || b[4] != 6 || b[5] != 4 {
		return arp{}, false
	}
	return arp{
		op: be.Uint16(b[6:]), sender: keyOf(b[8:]), senderIP: be.Uint32(b[14:]),
		target: keyOf(b[18:]), targetIP: be.Uint32(b[24:]),
	}, true
}

// guard refuses what a pinned port may not send.
func (p *port) guard(f *frame) Reason {
	if f.src != p.mac {
		return DropSpoof
	}
	switch f.ether {
	case etherIPv4:
		if p.ip == 0 {
			if p.sw.forged(p, f) {
				return DropSpoof
			}
		} else if src, _ := f.ipv4(); src != p.ip {
			// A client without an address asks for one.
			sp, dp, ok := f.ports()
			if src != 0 || !ok || f.proto != protoUDP || sp != 68 || dp != 67 {
				return DropSpoof
			}
		}
		if sp, _, ok := f.ports(); ok && f.proto == protoUDP && sp == 67 {
			return DropServer
		}
	case etherARP:
		a, ok := arpOf(f)
		if !ok || a.sender != p.mac || p.ip != 0 && a.senderIP != p.ip && a.senderIP != 0 || p.ip == 0 && p.sw.forged(p, f) {
			return DropSpoof
		}
	case etherIPv6:
		return p.guard6(f)
	default:
		return DropProtocol
	}
	return Delivered
}

// ICMPv6 types of neighbour discovery (RFC 4861).
const (
	routerAdvertisement    = 134
	neighbourAdvertisement = 136
	redirect               = 137
)

func (p *port) guard6(f *frame) Reason {
	if src := [16]byte(f.head[f.l3+8:]); !p.owns6(src) && src != [16]byte{} {
		return DropSpoof
	}
	switch {
	case f.proto == protoICMPv6 && f.pieces:
		return DropServer // neighbour discovery is never fragmented (RFC 6980)
	case f.proto == protoICMPv6 && !f.fragment:
		switch f.head[f.l4] {
		case routerAdvertisement, redirect:
			return DropServer
		case neighbourAdvertisement:
			if f.l4+24 > len(f.head) {
				return DropShort
			}
			if !p.owns6([16]byte(f.head[f.l4+8:])) {
				return DropSpoof
			}
		}
	case f.proto == protoUDP:
		if sp, _, ok := f.ports(); ok && sp == 547 {
			return DropServer
		}
	}
	return Delivered
}

// owns6 reports whether a is one of the port's IPv6 addresses.
func (p *port) owns6(a [16]byte) bool {
	return a == p.local6 || p.cfg.Addr6.IsValid() && a == p.cfg.Addr6.As16()
}

// linkLocal returns the IPv6 address that mac implies (RFC 4291 appendix A).
func linkLocal(m MAC) [16]byte {
	return [16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
}
