package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/mgmt/api"
)

// imageDisk is the ID of the one disk of a driver that serves an image.
const imageDisk = "image"

// imageMemory is a driver's own memory, in bytes.
const imageMemory = 64 << 20

var imageDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// useImage makes a driver that serves the image of a VM, unless one does already, and makes its disk the VM's root. The caller registers the VM
// before it calls release.
//
// An image that is only read has one driver for all VMs, named after its content, which has a link to the image's disk: the image may be
// removed, or another one take its name, as long as VMs use it. A VM that writes has a driver and a copy of its own, which go with it.
func (d *Daemon) useImage(cfg *api.VMConfig) (release func(), err error) {
	if cfg.Root != nil {
		return nil, api.Errorf(api.Invalid, "a VM has either an image or a root disk")
	}
	d.images.Lock()
	defer func() {
		if err != nil {
			d.images.Unlock()
		}
	}()
	i := cfg.Image
	name := "img-" + strings.TrimPrefix(i.Digest, "sha256:")[:12]
	path := filepath.Join(d.dirs.State, "roots", name+".ext4")
	place := linkFile
	if i.Writable {
		h := sha256.Sum256([]byte(cfg.Name))
		name, place = "root-"+hex.EncodeToString(h[:6]), copyFile
		path = filepath.Join(d.dirs.State, "roots", name+".ext4")
	}
	root := api.DiskRef{Driver: name, Disk: imageDisk, ReadOnly: !i.Writable}
	if _, err := d.driver(name); err == nil {
		if i.Writable {
			return nil, api.Errorf(api.Exists, "driver %s serves a disk of a VM %s already", name, cfg.Name)
		}
		cfg.Root = &root
		return d.images.Unlock, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed graild's
		return nil, err
	}
	if err := place(path, i.Path); err != nil {
		_ = os.Remove(path)
		return nil, api.Errorf(api.Invalid, "image %s: %v", i.Name, err)
	}
	err = d.CreateDriver(context.Background(), api.DriverConfig{Name: name, Type: typeBlk, MemoryBytes: imageMemory, Socket: true, Image: i.Name,
		Disks: []api.Disk{{ID: imageDisk, Path: path, ReadOnly: !i.Writable}}})
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	cfg.Root = &root
	return d.images.Unlock, nil
}

// sweepImages removes the drivers of images that no VM uses.
func (d *Daemon) sweepImages() {
	d.images.Lock()
	defer d.images.Unlock()
	d.mu.Lock()
	drivers := slices.Collect(maps.Values(d.drivers))
	d.mu.Unlock()
	for _, dr := range drivers {
		if dr.rec.Config.Image == "" || len(d.rootedIn(dr.name())) > 0 {
			continue
		}
		if err := d.RemoveDriver(dr.name(), true); err != nil {
			d.log.Warn("remove the driver of an image", "driver", dr.name(), "error", err)
			continue
		}
		for _, k := range dr.rec.Config.Disks {
			_ = os.Remove(k.Path)
		}
	}
}

// rootedIn names the VMs whose system is on a disk of a driver.
func (d *Daemon) rootedIn(driver string) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, v := range d.vms {
		if cfg, _ := v.config(); cfg.Root != nil && cfg.Root.Driver == driver {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// linkFile gives a file a second name, so that it stays when the first is gone.
func linkFile(to, from string) error {
	err := os.Link(from, to)
	if errors.Is(err, unix.EXDEV) {
		return copyFile(to, from)
	}
	return err
}

// copyFile copies a file with its holes; where the file system can, the copy shares its blocks.
func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", from)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		begin, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but holes
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, begin), io.NewSectionReader(in, begin, at-begin)); err != nil {
			return err
		}
	}
}
