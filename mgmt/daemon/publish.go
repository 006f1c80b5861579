package daemon

import (
	"context"
	"errors"
	"fmt"
	stdnet "net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// published is a port of the host's that leads to a VM. graild holds its socket as well as the NAT process, so that it stays taken whoever
// dies, and clients that come in between wait.
type published struct {
	net.Publication
	vm     string
	socket *os.File // listening, or bound
}

// publicationOf names a published port of a VM. The ID tells whose it is, for people too.
func publicationOf(vm string, p api.Publish, guest netip.Addr) net.Publication {
	proto := "tcp"
	if p.UDP {
		proto = "udp"
	}
	return net.Publication{ID: fmt.Sprintf("%s %s to %s:%d", proto, p.Address, vm, p.Port), UDP: p.UDP, To: netip.AddrPortFrom(guest, p.Port)}
}

// publisher returns the driver by which a VM publishes its ports, and the VM's address there.
func (d *Daemon) publisher(cfg *api.VMConfig) (*driver, netip.Addr, error) {
	if len(cfg.Nets) == 0 {
		return nil, netip.Addr{}, api.Errorf(api.Invalid, "VM %s has no network card any more", cfg.Name)
	}
	ref := cfg.Nets[0]
	dr, err := d.driver(ref.Driver)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	p, err := dr.portOf(ref.Port)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	if dr.rec.Config.Uplink == "" {
		return nil, netip.Addr{}, api.Errorf(api.Invalid, "a port cannot be published through %s: that driver has no way out of the host; make it with grailctl driver create net … --uplink user", ref.Driver)
	}
	return dr, p.Address.Addr(), nil
}

// checkPublished refuses to make a VM whose ports could not be published.
func (d *Daemon) checkPublished(cfg api.VMConfig) error {
	if len(cfg.Publish) == 0 {
		return nil
	}
	_, _, err := d.publisher(&cfg)
	return err
}

// publish takes the host's ports of a VM that is about to start. withdraw gives them back.
func (d *Daemon) publish(cfg api.VMConfig) (withdraw func(), err error) {
	if len(cfg.Publish) == 0 {
		return func() {}, nil
	}
	dr, guest, err := d.publisher(&cfg)
	if err != nil {
		return nil, err
	}
	var list []*published
	for _, p := range cfg.Publish {
		pub, err := d.openPublished(cfg.Name, p, guest)
		if err != nil {
			for _, o := range list {
				o.socket.Close()
			}
			return nil, err
		}
		list = append(list, pub)
	}
	for _, p := range list {
		dr.addPublished(p)
	}
	return func() { d.withdraw(cfg.Name) }, nil
}

// openPublished takes one port of the host's.
func (d *Daemon) openPublished(vm string, p api.Publish, guest netip.Addr) (*published, error) {
	f, err := hostSocket(p)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		by := "another program"
		if holder := d.publishedBy(p); holder != "" {
			by = "VM " + holder
		}
		return nil, api.Errorf(api.Busy, "port %s of the host is taken by %s; publish another one, or end that", p.Address, by)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, api.Errorf(api.Invalid, "%s is no address of this host; publish at one of its own, at 127.0.0.1 or at 0.0.0.0", p.Address.Addr())
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return nil, api.Errorf(api.Invalid, "port %s of the host may not be taken by this user; publish one from 1024 on", p.Address)
	case err != nil:
		return nil, fmt.Errorf("publish %s: %w", p, err)
	}
	return &published{Publication: publicationOf(vm, p, guest), vm: vm, socket: f}, nil
}

// hostSocket returns a listening, or bound, socket.
func hostSocket(p api.Publish) (*os.File, error) {
	var lc stdnet.ListenConfig
	lc.SetMultipathTCP(false)
	family := "4"
	if p.Address.Addr().Is6() {
		family = "6"
	}
	if p.UDP {
		c, err := lc.ListenPacket(context.Background(), "udp"+family, p.Address.String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return notPolled(c.(*stdnet.UDPConn).File())
	}
	l, err := lc.Listen(context.Background(), "tcp"+family, p.Address.String())
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return notPolled(l.(*stdnet.TCPListener).File())
}

// notPolled returns f as a file that graild hands on and is not woken by; see hv.KeptFile.
func notPolled(f *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(uintptr(rawFD(f)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("dup: %w", err)
	}
	return hv.KeptFile(fd, f.Name()), nil
}

// publishedBy names the VM that has a port of the host's, if it is one.
func (d *Daemon) publishedBy(p api.Publish) string {
	for _, v := range d.VMs() {
		if v.State.Live() {
			for _, o := range v.Publish {
				same := o.Address.Addr() == p.Address.Addr() || o.Address.Addr().IsUnspecified() || p.Address.Addr().IsUnspecified()
				if same && o.UDP == p.UDP && o.Address.Port() == p.Address.Port() {
					return v.Name
				}
			}
		}
	}
	return ""
}

// addPublished has the NAT process serve a port. If there is none now, the next one does.
func (dr *driver) addPublished(p *published) {
	dr.publishing.Lock()
	defer dr.publishing.Unlock()
	dr.mu.Lock()
	dr.published[p.ID] = p
	n := dr.nat
	dr.mu.Unlock()
	if n == nil {
		return
	}
	if err := n.publish(p); err != nil {
		dr.d.log.Error("publish", "driver", dr.name(), "port", p.ID, "error", err)
	}
}

func (n *nat) publish(p *published) error {
	_, err := n.ask(net.NATRequest{Op: net.NATPublish, Publication: p.Publication}, rawFD(p.socket))
	return err
}

// publishAll tells a NAT process of all that is published, and withdraws what is not any more.
func (n *nat) publishAll() error {
	dr := n.dr
	dr.publishing.Lock()
	defer dr.publishing.Unlock()
	r, _, err := n.call(net.NATRequest{Op: net.NATStatus})
	if err != nil {
		return err
	}
	var errs []error
	dr.mu.Lock()
	want := map[string]*published{}
	for id, p := range dr.published {
		want[id] = p
	}
	dr.mu.Unlock()
	if r.State != nil {
		for _, p := range r.State.Published {
			if want[p.ID] == nil {
				_, err := n.ask(net.NATRequest{Op: net.NATWithdraw, Publication: p})
				errs = append(errs, err)
			}
			delete(want, p.ID)
		}
	}
	for _, p := range want {
		errs = append(errs, n.publish(p))
	}
	return errors.Join(errs...)
}

// withdraw gives up what a VM has published.
func (d *Daemon) withdraw(vm string) {
	d.mu.Lock()
	var list []*driver
	for _, dr := range d.drivers {
		list = append(list, dr)
	}
	d.mu.Unlock()
	for _, dr := range list {
		dr.withdraw(vm)
	}
}

func (dr *driver) withdraw(vm string) {
	dr.publishing.Lock()
	defer dr.publishing.Unlock()
	var gone []*published
	dr.mu.Lock()
	for id, p := range dr.published {
		if p.vm == vm {
			delete(dr.published, id)
			gone = append(gone, p)
		}
	}
	n := dr.nat
	dr.mu.Unlock()
	for _, p := range gone {
		p.socket.Close()
		if n == nil {
			continue
		}
		if _, err := n.ask(net.NATRequest{Op: net.NATWithdraw, Publication: p.Publication}); err != nil {
			dr.d.log.Warn("withdraw", "driver", dr.name(), "port", p.ID, "error", err)
		}
	}
}

// republish takes over what an adopted VM has published: from the NAT process, or anew where that is gone. It is called before anything
// else happens to the drivers.
func (d *Daemon) republish(v *vm) {
	if v.inst == nil || len(v.rec.Config.Publish) == 0 {
		return
	}
	fail := func(p api.Publish, err error) {
		d.log.Error("adopt: a published port is lost", "vm", v.name(), "port", p, "error", err)
		v.rec.Notes = append(v.rec.Notes, fmt.Sprintf("graild was restarted and could not publish %s again: %v", p, err))
	}
	dr, guest, err := d.publisher(&v.rec.Config)
	for _, p := range v.rec.Config.Publish {
		if err != nil {
			fail(p, err)
			continue
		}
		pub := &published{Publication: publicationOf(v.name(), p, guest), vm: v.name()}
		if dr.nat != nil {
			if files, err := dr.nat.ask(net.NATRequest{Op: net.NATFetch, Publication: pub.Publication}); err == nil && len(files) == 1 {
				pub.socket = files[0]
			}
		}
		if pub.socket == nil {
			opened, err := d.openPublished(v.name(), p, guest)
			if err != nil {
				fail(p, err)
				continue
			}
			pub = opened
		}
		dr.published[pub.ID] = pub
	}
}
