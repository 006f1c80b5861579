package daemon

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strings"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// The kinds of uplink of a net driver.
const (
	noUplink   = ""
	userUplink = "user"
	tapUplink  = "tap"
)

// uplinkKind is a parsed api.DriverConfig.Uplink.
type uplinkKind struct {
	kind     string
	loopback bool   // user
	tap      string // its name
}

// uplinkOf reads a net driver's uplink.
func uplinkOf(c *api.DriverConfig) (uplinkKind, error) {
	switch c.Uplink {
	case "", "none":
		return uplinkKind{}, nil
	case "user":
		return uplinkKind{kind: userUplink}, nil
	case "user:loopback":
		return uplinkKind{kind: userUplink, loopback: true}, nil
	}
	if name, ok := strings.CutPrefix(c.Uplink, "tap:"); ok {
		if !tapForm.MatchString(name) {
			return uplinkKind{}, api.Errorf(api.Invalid, "uplink %q: a tap device's name is 1 to 15 letters, digits, dots, dashes and underscores", c.Uplink)
		}
		return uplinkKind{kind: tapUplink, tap: name}, nil
	}
	return uplinkKind{}, api.Errorf(api.Invalid, "there is no uplink %q; use user, user:loopback, tap:NAME or none", c.Uplink)
}

// lastAddress returns the last address of a network that a host can have. Precondition: IPv4, at most 30 bits.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|(1<<(32-p.Bits())-1))
	return netip.AddrFrom4(b).Prev()
}

// uplink is both ends of a net driver's way out. graild keeps them, so that it stays open whoever dies.
type uplink struct {
	near *net.Uplink // the driver VM's
	far  *os.File    // the NAT process's; nil for a tap, whose other end is the host's kernel
}

// keepUplink is the name of the descriptors in a driver's Spec; see keepStatus.
const keepUplink = "uplink"

// openUplink makes the driver's uplink, if it is to have one and has none.
func (dr *driver) openUplink() error {
	kind, err := uplinkOf(&dr.rec.Config)
	if err != nil {
		return err
	}
	dr.mu.Lock()
	defer dr.mu.Unlock()
	if kind.kind == noUplink || dr.uplink != nil {
		return nil
	}
	if kind.kind == tapUplink {
		near, err := dr.openTap(kind.tap)
		if err == nil {
			dr.uplink = &uplink{near: near}
		}
		return err
	}
	near, far, err := net.NewSocket(net.NATOffloads)
	if err != nil {
		return err
	}
	dr.uplink = &uplink{near: near, far: far}
	return nil
}

// adoptUplink takes over both ends of an uplink that was open before, unless there is one.
func (dr *driver) adoptUplink(near, far *os.File) {
	kind, err := uplinkOf(&dr.rec.Config)
	offloads := uint64(net.NATOffloads)
	if kind.kind == tapUplink {
		offloads = vswitch.Offloads
	}
	dr.mu.Lock()
	defer dr.mu.Unlock()
	if err != nil || dr.uplink != nil || near == nil || far == nil && kind.kind != tapUplink {
		closeAll(near, far)
		return
	}
	dr.uplink = &uplink{near: &net.Uplink{File: near, Offloads: offloads}, far: far}
}

// addTo gives a driver VM its end, and has its process keep both.
func (u *uplink) addTo(l *hv.Launch) {
	if u == nil {
		return
	}
	c := u.near.Cap()
	c.FD = l.Add(u.near.File)
	l.Spec.Caps = append(l.Spec.Caps, c)
	kept := []hv.AttachMem{{FD: l.Add(u.near.File)}}
	if u.far != nil {
		kept = append(kept, hv.AttachMem{FD: l.Add(u.far)})
	}
	l.Spec.Attachments = append(l.Spec.Attachments, hv.Attachment{Disk: keepUplink, Log: -1, Regions: kept})
}

func (u *uplink) close() {
	if u != nil {
		closeAll(u.near.File, u.far)
	}
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
