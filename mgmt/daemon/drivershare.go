package daemon

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/mgmt/api"
)

// maxShares bounds what is said of a driver's clients.
const maxShares = 4096

func (d *Daemon) setDriverShare(r *http.Request) (any, error) {
	var s api.DriverShare
	if err := decode(r, &s); err != nil {
		return nil, err
	}
	return struct{}{}, d.SetDriverShare(r.PathValue("name"), s.Client, s.Config)
}

// DriverShares returns what was said of the clients of a driver, by name, then what those get that are attached and of which nothing was said.
func (d *Daemon) DriverShares(driver string) ([]api.DriverShare, error) {
	dr, err := d.driver(driver)
	if err != nil {
		return nil, err
	}
	dr.mu.Lock()
	said, clients := dr.rec.Shares, dr.clientList()
	dr.mu.Unlock()
	list := []api.DriverShare{}
	for _, name := range slices.Sorted(maps.Keys(said)) {
		list = append(list, api.DriverShare{Client: name, Config: said[name]})
	}
	if dr.rec.Config.Type == typeConsole {
		return list, nil
	}
	seen := map[string]bool{}
	for _, c := range clients {
		names, vm := dr.namesOf(c)
		if seen[names[0]] || slices.ContainsFunc(names, func(n string) bool { _, ok := said[n]; return ok }) {
			continue // each queue of a port may be an attachment of its own
		}
		seen[names[0]] = true
		list = append(list, api.DriverShare{Client: names[0], Config: d.domains.treeShare(vm, dr.name(), dr.rec.Config.Type), Attached: true})
	}
	return list, nil
}

// SetDriverShare says what a client gets of a driver beside the others, now and whenever it is attached; an empty configuration is the default. It
// returns when the driver does so. The client need not be there yet; see api.DriverShare for its name.
func (d *Daemon) SetDriverShare(driver, client string, cfg share.Config) error {
	dr, err := d.driver(driver)
	if err != nil {
		return err
	}
	if dr.rec.Config.Type == typeConsole {
		return api.Errorf(api.Invalid, "a console driver bounds each log by itself; shares are for block and net drivers")
	}
	if err := cfg.Check(); err != nil {
		return api.Errorf(api.Invalid, "share of %s: %v", client, err)
	}
	if vm, dev, both := strings.Cut(client, "/"); vm == "" || both && dev == "" || len(client) > 200 {
		return api.Errorf(api.Invalid, "%q is not the name of a VM, of a disk or port, or VM/DISK", client)
	}
	dr.mu.Lock()
	shares := maps.Clone(dr.rec.Shares)
	if shares == nil {
		shares = map[string]share.Config{}
	}
	if shares[client] = cfg; isDefault(cfg) {
		delete(shares, client)
	}
	if len(shares) > maxShares {
		dr.mu.Unlock()
		return api.Errorf(api.Invalid, "driver %s has shares of %d clients, which is all that it can have", driver, maxShares)
	}
	dr.rec.Shares = shares
	rec := dr.rec
	d.store.PutDriverLater(&rec) // under the lock, so that what is written last is what was changed last
	dr.mu.Unlock()
	if err := d.store.Sync(); err != nil {
		return err
	}
	return dr.applyShares()
}

func isDefault(c share.Config) bool { return c.Limits == share.Limits{} && len(c.Groups) == 0 }

// applyShares tells the present instance what its clients get, as far as it was told something else.
func (dr *driver) applyShares() error {
	dr.mu.Lock()
	clients := dr.clientList()
	dr.mu.Unlock()
	for _, c := range clients {
		if err := dr.applyShare(c); err != nil {
			return fmt.Errorf("driver %s: share of %s: %w", dr.name(), c.att.Client, err)
		}
	}
	return nil
}

// shareAgain tells an adopted instance what its clients get, in case that the last graild died before it had.
func (dr *driver) shareAgain() {
	if err := dr.applyShares(); err != nil {
		dr.d.log.Warn("shares", "driver", dr.name(), "error", err)
	}
}

func (dr *driver) applyShare(c *client) error {
	c.attaching.Lock() // who is being attached may have been told what held before
	defer c.attaching.Unlock()
	if c.gets == nil {
		return nil
	}
	text := c.gets()
	c.mu.Lock()
	inst, told := c.on, c.told
	c.share = text
	c.mu.Unlock()
	if inst == nil || told == text {
		return nil
	}
	complaint, err := inst.ask(abi.Message{Type: abi.MsgShare, ID: c.att.ID, Text: text})
	switch {
	case err != nil && inst.gone():
		return nil // the next one is told when it gets the client
	case err != nil:
		return err
	case complaint != "":
		return fmt.Errorf("it refused: %s", complaint)
	}
	c.mu.Lock()
	c.told = text
	c.mu.Unlock()
	return nil
}

// shareText is a share as the driver is told of it.
func shareText(c share.Config) string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // numbers and strings can always be written
	}
	return string(b)
}

// shareOf returns what a client gets: its part in the tree of reservations, or what was said of it for this driver in place of that.
func (dr *driver) shareOf(c *client) share.Config {
	dr.mu.Lock()
	shares, kind := dr.rec.Shares, dr.rec.Config.Type
	dr.mu.Unlock()
	names, vm := dr.namesOf(c)
	cfg := dr.d.domains.treeShare(vm, dr.name(), kind)
	for _, n := range names {
		if s, ok := shares[n]; ok {
			if len(s.Groups) == 0 {
				s.Groups = cfg.Groups
			}
			return s
		}
	}
	return cfg
}

// namesOf returns the names by which something may be said of a client, the most particular first, and its VM's.
func (dr *driver) namesOf(c *client) (names []string, vm string) {
	names = []string{c.att.Client + "/" + c.att.Disk, c.att.Client, c.att.Disk}
	if vm = dr.vmBehind(c); vm == "" {
		return names, c.att.Client
	}
	return append([]string{vm + "/" + c.att.Disk, vm}, names...), vm
}

// vmBehind returns the VM whose client of the portal c is, as far as that is certain.
func (dr *driver) vmBehind(c *client) (name string) {
	if c.att.ID < hv.PortalIDs {
		return ""
	}
	dr.d.mu.Lock()
	vms := slices.Collect(maps.Values(dr.d.vms))
	dr.d.mu.Unlock()
	for _, v := range vms {
		cfg, _ := v.config()
		disks := cfg.Disks
		if cfg.Root != nil {
			disks = append(slices.Clone(disks), *cfg.Root)
		}
		has := slices.ContainsFunc(disks, func(r api.DiskRef) bool { return r.Driver == dr.name() && r.Disk == c.att.Disk }) ||
			slices.ContainsFunc(cfg.Nets, func(r api.NetRef) bool { return r.Driver == dr.name() && r.Port == c.att.Disk })
		switch {
		case !has:
		case name != "":
			return ""
		default:
			name = cfg.Name
		}
	}
	return name
}

// defaultShare is what a client gets of whom nothing was said.
var defaultShare = shareText(share.Config{})

// addShare adds to an attachment of c what c gets, and returns that. A recovery does not wait for the tree of reservations: what c gets was found out
// when it was attached first, and again with each change.
func (c *client) addShare(att *hv.Attachment) (gets string, err error) {
	if c.gets == nil {
		return "", nil
	}
	c.mu.Lock()
	gets = c.share
	c.mu.Unlock()
	if gets == "" {
		gets = c.gets()
		c.mu.Lock()
		c.share = gets
		c.mu.Unlock()
	}
	if gets != defaultShare {
		att.Config, err = withShare(att.Config, gets)
	}
	return gets, err
}

// withShare adds a share to an attachment's configuration, which is a JSON object or empty.
func withShare(config, text string) (string, error) {
	fields := map[string]json.RawMessage{}
	if config != "" {
		if err := json.Unmarshal([]byte(config), &fields); err != nil {
			return "", fmt.Errorf("the attachment's configuration: %w", err)
		}
	}
	fields["share"] = json.RawMessage(text)
	b, err := json.Marshal(fields)
	return string(b), err
}
