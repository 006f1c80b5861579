package vswitch

import (
	"net/netip"

	"github.com/grailos/grail/hv/abi"
)

// UplinkName is the name of the capability that is the uplink.
const UplinkName = "uplink"

// The messages beside those of package abi. The host sends MsgConfig and MsgStats; both are answered.
const (
	// MsgNames replaces a tenant's table of names: Text is a Names in JSON. Answered by abi.MsgDone with the same ID.
	MsgNames abi.MessageType = "names"
	// MsgStats asks for counters: of attachment ID, or of the uplink where ID is 0. Answered by MsgStats with the
	// same ID, Text being an object of numbers in JSON.
	MsgStats abi.MessageType = "stats"
)

// Names is a tenant's table of names.
type Names struct {
	Tenant uint16                `json:"tenant"`
	Names  map[string]netip.Addr `json:"names"`
}
