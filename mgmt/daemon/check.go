package daemon

import (
	"path/filepath"
	"regexp"
	"strings"

	"github.com/grailos/grail/drivervms/blk"
	"github.com/grailos/grail/drivervms/console"
	"github.com/grailos/grail/drivervms/net"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// Bounds of names. DRIVER/DISK must fit the name of a capability (hv/abi), and a disk's ID what virtio-blk's
// get-id returns (virtio 1.2 §5.2.6).
const (
	maxVMName     = 32
	maxDriverName = 19
	maxDiskID     = 20
)

// maxDisks bounds the disks of a VM, and of a driver.
const maxDisks = 16

// maxNets bounds the network ports of a VM.
const maxNets = 8

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

func checkName(what, name string, most int) error {
	if len(name) > most || !nameForm.MatchString(name) {
		return api.Errorf(api.Invalid, "%s %q is not valid; use 1 to %d letters, digits, dots, dashes and underscores, starting with a letter or digit", what, name, most)
	}
	return nil
}

func checkEngine(e hv.Engine) error {
	switch e {
	case "", hv.EngineKVM, hv.EngineProcess:
		return nil
	}
	return api.Errorf(api.Invalid, "there is no engine %q; use kvm or process", e)
}

// checkVM refuses a configuration that makes no sense, whoever sent it.
func checkVM(c *api.VMConfig) error {
	if err := checkName("name", c.Name, maxVMName); err != nil {
		return err
	}
	switch c.Personality {
	case api.Native:
		if err := checkEngine(c.Engine); err != nil {
			return err
		}
		if !filepath.IsAbs(c.Program) {
			return api.Errorf(api.Invalid, "program %q is no absolute path", c.Program)
		}
	case api.Linux:
		if err := api.CheckLinux(c); err != nil {
			return err
		}
		if i := c.Image; i != nil && (!imageDigest.MatchString(i.Digest) || !filepath.IsAbs(i.Path)) {
			return api.Errorf(api.Invalid, "image %q: expected a digest and an absolute path, not %.80q and %q", i.Name, i.Digest, i.Path)
		}
	default:
		return api.Errorf(api.Invalid, "there is no personality %q; use native or linux", c.Personality)
	}
	if err := api.CheckMemory(c.MemoryBytes, api.MinMemory); err != nil {
		return err
	}
	if err := api.CheckCPU(c.CPU); err != nil {
		return err
	}
	if err := checkVMShare(c); err != nil {
		return err
	}
	if err := checkRealTime(c); err != nil {
		return err
	}
	if len(c.Disks) > maxDisks {
		return api.Errorf(api.Invalid, "%d disks are too many; a VM can have %d", len(c.Disks), maxDisks)
	}
	seen := map[api.DiskRef]bool{}
	for _, r := range c.Disks {
		r.ReadOnly = false
		if seen[r] {
			return api.Errorf(api.Invalid, "disk %s/%s is given twice", r.Driver, r.Disk)
		}
		seen[r] = true
	}
	if len(c.Nets) > maxNets {
		return api.Errorf(api.Invalid, "%d network ports are too many; a VM can have %d", len(c.Nets), maxNets)
	}
	plugged := map[api.NetRef]bool{}
	for _, r := range c.Nets {
		if plugged[r] {
			return api.Errorf(api.Invalid, "port %s/%s is given twice", r.Driver, r.Port)
		}
		plugged[r] = true
	}
	if err := api.CheckPublish(c); err != nil {
		return err
	}
	for _, kv := range c.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsRune(kv, 0) {
			return api.Errorf(api.Invalid, "environment %q is not of the form NAME=value", kv)
		}
	}
	for _, a := range c.Args {
		if strings.ContainsRune(a, 0) {
			return api.Errorf(api.Invalid, "an argument contains a zero byte")
		}
	}
	return nil
}

// checkDriver refuses a configuration that makes no sense, and fills in what was left out.
func checkDriver(c *api.DriverConfig) error {
	least := uint64(blk.MinMemory)
	switch c.Type {
	case typeBlk:
	case typeNet:
		least = net.MinMemory
	case typeConsole:
		least = console.MinMemory
	default:
		return api.Errorf(api.Invalid, "there is no driver of type %q; use blk, net or console", c.Type)
	}
	if err := checkName("name", c.Name, maxDriverName); err != nil {
		return err
	}
	if err := checkEngine(c.Engine); err != nil {
		return err
	}
	if err := api.CheckMemory(c.MemoryBytes, least); err != nil {
		return err
	}
	defaultPolicy(c)
	if err := checkPolicy(c); err != nil {
		return err
	}
	switch c.Type {
	case typeNet:
		return checkPorts(c)
	case typeConsole:
		return checkConsole(c)
	}
	if c.Uplink != "" {
		return api.Errorf(api.Invalid, "an uplink is for net drivers; a block driver has disks")
	}
	switch {
	case len(c.Disks) == 0:
		return api.Errorf(api.Invalid, "a block driver needs a disk; give one with --disk ID=PATH")
	case len(c.Disks) > maxDisks:
		return api.Errorf(api.Invalid, "%d disks are too many; a driver can have %d", len(c.Disks), maxDisks)
	}
	seen := map[string]bool{}
	for _, k := range c.Disks {
		if err := checkName("disk ID", k.ID, maxDiskID); err != nil {
			return err
		}
		if seen[k.ID] {
			return api.Errorf(api.Invalid, "disk ID %s is given twice", k.ID)
		}
		seen[k.ID] = true
		if !filepath.IsAbs(k.Path) {
			return api.Errorf(api.Invalid, "disk %s: %q is no absolute path", k.ID, k.Path)
		}
	}
	return nil
}

// The types of drivers.
const (
	typeBlk = "blk"
	typeNet = "net"

	typeConsole = "console"
)

func quoted(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
