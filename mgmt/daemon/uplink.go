package daemon

import (
	"encoding/binary"
	"net/netip"
	"os"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// The kinds of uplink of a net driver.
const (
	noUplink   = ""
	userUplink = "user"
)

// uplinkKind is a parsed api.DriverConfig.Uplink.
type uplinkKind struct {
	kind     string
	loopback bool
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
	return uplinkKind{}, api.Errorf(api.Invalid, "there is no uplink %q; use user, user:loopback or none", c.Uplink)
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
	far  *os.File    // the NAT process's
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
	near, far, err := net.NewSocket(net.NATOffloads)
	if err != nil {
		return err
	}
	dr.uplink = &uplink{near: near, far: far}
	return nil
}

// adoptUplink takes over both ends of an uplink that was open before, unless there is one.
func (dr *driver) adoptUplink(near, far *os.File) {
	dr.mu.Lock()
	defer dr.mu.Unlock()
	if dr.uplink != nil || near == nil || far == nil {
		closeAll(near, far)
		return
	}
	dr.uplink = &uplink{near: &net.Uplink{File: near, Offloads: net.NATOffloads}, far: far}
}

// addTo gives a driver VM its end, and has its process keep both.
func (u *uplink) addTo(l *hv.Launch) {
	if u == nil {
		return
	}
	c := u.near.Cap()
	c.FD = l.Add(u.near.File)
	l.Spec.Caps = append(l.Spec.Caps, c)
	l.Spec.Attachments = append(l.Spec.Attachments, hv.Attachment{Disk: keepUplink, Log: -1,
		Regions: []hv.AttachMem{{FD: l.Add(u.near.File)}, {FD: l.Add(u.far)}}})
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
