package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/drivervms/net/vswitch"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
)

// roleNAT marks the process at the far end of a net driver's uplink.
const roleNAT role = "nat"

// nat is a NAT process.
type nat struct {
	dr         *driver
	generation int
	proc       *hv.Process
	socket     string
}

// natEnds says how the NAT processes of a driver ended since graild's start.
type natEnds struct {
	count int
	last  string
	err   error // why there is none now
}

// natCheck is how often a NAT process is asked how it is, and the host's list of resolvers is looked at.
const natCheck = 5 * time.Second

func (d *Daemon) natControl(driver string, generation int) string {
	return filepath.Join(d.dirs.Sockets(), driver+".nat."+strconv.Itoa(generation))
}

// runNAT keeps a NAT process running as long as its driver is wanted. One that has died takes its connections along; the next one serves new
// ones, and the same published ports.
func (dr *driver) runNAT() {
	d := dr.d
	pause := portalPause
	dr.mu.Lock()
	n := dr.nat // adopted
	dr.mu.Unlock()
	for {
		var err error
		if n == nil {
			n, err = dr.startNAT()
		}
		began := time.Now()
		dr.mu.Lock()
		dr.nat, dr.natEnds.err = n, err
		dr.set(dr.state, dr.message)
		dr.mu.Unlock()
		if err == nil {
			err = n.attend()
		}
		select {
		case <-dr.stop:
			n.end()
			return
		case <-d.closing:
			if n != nil {
				n.proc.Close()
			}
			return
		default:
		}
		n.end()
		n = nil
		if time.Since(began) > maxPortalPause {
			pause = portalPause
		}
		dr.mu.Lock()
		dr.nat, dr.natEnds.err = nil, err
		dr.natEnds.count++
		dr.natEnds.last = time.Now().UTC().Format(time.RFC3339) + ": " + err.Error()
		dr.set(dr.state, dr.message)
		dr.mu.Unlock()
		d.log.Error("the NAT process ended; connections through it are lost", "driver", dr.name(), "error", err, "next", pause)
		select {
		case <-time.After(pause):
		case <-dr.stop:
			return
		case <-d.closing:
			return
		}
		pause = min(2*pause, maxPortalPause)
	}
}

// startNAT starts a NAT process, and returns when it serves.
func (dr *driver) startNAT() (*nat, error) {
	d := dr.d
	path, err := place.Program("grailnat")
	if err != nil {
		return nil, err
	}
	kind, err := uplinkOf(&dr.rec.Config)
	if err != nil {
		return nil, err
	}
	if err := dr.openUplink(); err != nil {
		return nil, err
	}
	subnet, err := netip.ParsePrefix(dr.rec.Config.Subnet)
	if err != nil {
		return nil, err
	}
	id, err := d.store.NextID()
	if err != nil {
		return nil, err
	}
	n := &nat{dr: dr, generation: int(id), socket: d.natControl(dr.name(), int(id))}
	l := hv.Exec{Path: path, Tag: d.tag(roleNAT, dr.name(), n.generation), HostNetwork: true}
	stderr, control, err := d.helperFiles(dr.name(), dr.natLog(), n.socket)
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	defer control.Close()
	l.Stderr = stderr
	dr.mu.Lock()
	up := dr.uplink
	dr.mu.Unlock()
	spec := net.NATSpec{Driver: dr.name(), Control: l.Add(control), Stack: l.Add(up.far), Near: -1,
		NATConfig: net.NATConfig{Subnet: subnet, Gateway: lastAddress(subnet), MAC: net.GatewayMAC, MTU: vswitch.DefaultMTU,
			Loopback: kind.loopback, Resolvers: hostResolvers()}}
	if up.far != nil {
		spec.Near = l.Add(up.near.File)
	}
	if n.proc, err = l.Start("grailnat", dr.name(), &spec); err != nil {
		_ = os.Remove(n.socket)
		return nil, err
	}
	dr.join(n.proc.PID)
	if _, err := n.ask(net.NATRequest{Op: net.NATStatus}); err != nil {
		n.end()
		if said := dr.natSaid(); said != "" {
			err = errors.New(said)
		}
		return nil, fmt.Errorf("the NAT process does not start: %w", err)
	}
	return n, nil
}

func (dr *driver) natLog() string { return filepath.Join(dr.d.dirs.VM(dr.name()), "nat.log") }

// natSaid returns the first line that the last NAT process has left.
func (dr *driver) natSaid() string {
	b, _ := os.ReadFile(dr.natLog())
	line, _, _ := strings.Cut(string(b[:min(len(b), 400)]), "\n")
	return line
}

// ask makes one request. Files that come back are the caller's.
func (n *nat) ask(req net.NATRequest, fds ...int) (got []*os.File, err error) {
	_, got, err = n.call(req, fds...)
	return got, err
}

func (n *nat) call(req net.NATRequest, fds ...int) (r net.NATResponse, got []*os.File, err error) {
	err = place.WithSocket(n.socket, func(short string) (err error) {
		r, got, err = net.AskNAT(short, callTimeout, req, fds...)
		return err
	})
	return r, got, err
}

// attend has the process serve the published ports and follow the host's resolvers until it ends, or its driver, or graild.
func (n *nat) attend() error {
	dr := n.dr
	if err := n.publishAll(); err != nil {
		dr.d.log.Error("publish", "driver", dr.name(), "error", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = n.proc.Wait(0)
	}()
	tick := time.NewTicker(natCheck)
	defer tick.Stop()
	told := hostResolvers()
	for {
		select {
		case <-ended:
			if said := dr.natSaid(); said != "" {
				return errors.New(said)
			}
			return errors.New("its process was killed")
		case <-dr.stop:
			return nil
		case <-dr.d.closing:
			return nil
		case <-tick.C:
			if _, err := n.ask(net.NATRequest{Op: net.NATStatus}); err != nil && !n.proc.Ended() {
				return fmt.Errorf("its process does not answer: %w", err)
			}
			if now := hostResolvers(); !slices.Equal(now, told) {
				if _, err := n.ask(net.NATRequest{Op: net.NATResolve, Resolvers: now}); err == nil {
					told = now
				}
			}
		}
	}
}

// end ends the process for good.
func (n *nat) end() {
	if n == nil {
		return
	}
	_ = n.proc.Kill()
	_ = n.proc.Wait(callTimeout)
	n.proc.Close()
	_ = os.Remove(n.socket)
}

// adoptNAT goes on with a predecessor's NAT process, if there is one, and takes the uplink's ends from it.
func (dr *driver) adoptNAT(p *running) {
	if p == nil {
		return
	}
	proc, err := dr.d.open(*p)
	if err != nil {
		return
	}
	n := &nat{dr: dr, generation: p.generation, proc: proc, socket: dr.d.natControl(dr.name(), p.generation)}
	op := net.NATEnds
	kind, err := uplinkOf(&dr.rec.Config)
	if kind.kind == tapUplink {
		op = net.NATStatus // it has no end of the uplink
	}
	var ends []*os.File
	if err == nil {
		ends, err = n.ask(net.NATRequest{Op: op})
	}
	if err != nil || op == net.NATEnds && len(ends) != 2 {
		net.CloseFiles(ends)
		dr.d.log.Error("adopt: the NAT process does not answer; replacing it", "driver", dr.name(), "error", err)
		n.end()
		return
	}
	if len(ends) == 2 {
		dr.adoptUplink(ends[0], ends[1])
	}
	// The resolvers may have changed while there was no graild.
	_, _ = n.ask(net.NATRequest{Op: net.NATResolve, Resolvers: hostResolvers()})
	dr.nat = n
}

// natView describes the driver's way out. The caller holds dr.mu.
func (dr *driver) natView() *api.NAT {
	if dr.rec.Config.Uplink == "" {
		return nil
	}
	v := &api.NAT{Ends: dr.natEnds.count, LastEnd: dr.natEnds.last}
	if subnet, err := netip.ParsePrefix(dr.rec.Config.Subnet); err == nil {
		v.Gateway = lastAddress(subnet).String()
	}
	if dr.nat != nil {
		v.PID = dr.nat.proc.PID
	}
	if dr.natEnds.err != nil {
		v.Error = dr.natEnds.err.Error()
	}
	for _, p := range dr.published {
		v.Published = append(v.Published, p.ID)
	}
	slices.Sort(v.Published)
	return v
}

// askNAT completes v by what the process says now.
func (dr *driver) askNAT(v *api.NAT) {
	dr.mu.Lock()
	n := dr.nat
	dr.mu.Unlock()
	if v == nil || n == nil {
		return
	}
	if r, _, err := n.call(net.NATRequest{Op: net.NATStatus}); err == nil && r.State != nil {
		v.Missing = r.State.Missing
	}
	if kind, err := uplinkOf(&dr.rec.Config); err == nil && kind.kind == tapUplink {
		v.Missing = append(v.Missing, tapLacks()...)
	}
}
