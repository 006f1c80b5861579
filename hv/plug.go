package hv

import (
	"encoding/json"
	"time"
)

// ForeignDevice is a disk or a network card of a running machine: exactly one of the two is set.
type ForeignDevice struct {
	Disk *ForeignDisk `json:"disk,omitempty"`
	NIC  *ForeignNIC  `json:"nic,omitempty"`
	// Network is what the guest's agent is told about its network when this has come or gone, in the words of the personality; nobody else
	// looks inside.
	Network json.RawMessage `json:"network,omitempty"`
}

// PlugTimeout bounds how long OpPlug, OpUnplug and OpDevices take.
const PlugTimeout = 2 * time.Minute
