package vswitch

import "net/netip"

// UplinkName is the name of the capability that is the uplink.
const UplinkName = "uplink"

// Names is a tenant's table of names, which replaces the one before: the Text of an abi.MsgNames in JSON.
type Names struct {
	Tenant uint16                `json:"tenant"`
	Names  map[string]netip.Addr `json:"names"`
}
