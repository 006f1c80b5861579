package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/apt"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Arch       string
	Version    string // as uname -r prints it
	Image      string // path of the bootable image: a bzImage on amd64, an Image on arm64
	ModulesDir string // lib/modules/Version of the package; empty if it has no modules

	modules map[string]string // path of each module's file, by name
	builtin map[string]bool
}

// packages are those that depend on the newest kernel, best first: Debian's and Ubuntu's for virtual machines.
func packages(arch string) []string {
	return []string{"linux-image-cloud-" + arch, "linux-image-virtual"}
}

// part matches the packages of a kernel's files, its image and its modules.
var part = regexp.MustCompile(`^linux-(image|modules)(-unsigned)?-[0-9]`)

// Fetch returns the kernel for arch ("amd64" or "arm64") in cacheDir, which it fills from the distribution's packages the first
// time. Several processes may share cacheDir. It may take minutes; a canceled ctx ends it.
func Fetch(ctx context.Context, cacheDir, arch string) (*Kernel, error) {
	if !slices.Contains(apt.Architectures, arch) {
		return nil, fmt.Errorf("kernel: unknown architecture %q; expected one of %s", arch, strings.Join(apt.Architectures, ", "))
	}
	dir := filepath.Join(cacheDir, arch)
	if k, err := Open(dir, arch); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(cacheDir, arch+".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k, err := Open(dir, arch); err == nil {
		return k, nil // somebody else was faster
	}
	fresh := dir + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.MkdirAll(fresh, 0o755)); err != nil {
		return nil, err
	}
	source, err := apt.NewSource(ctx, filepath.Join(cacheDir, arch+".apt"), arch)
	if err != nil {
		return nil, err
	}
	names, err := parts(ctx, source, arch)
	if err != nil {
		return nil, err
	}
	if err := source.Unpack(ctx, fresh, names...); err != nil {
		return nil, err
	}
	if _, err := Open(fresh, arch); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(fresh, dir)); err != nil {
		return nil, err
	}
	return Open(dir, arch)
}

// parts returns the packages that the first known of the kernel packages stands for.
func parts(ctx context.Context, source *apt.Source, arch string) ([]string, error) {
	var all []error
	for _, meta := range packages(arch) {
		names, err := source.Depends(ctx, meta, part)
		if err == nil {
			return names, nil
		}
		all = append(all, err)
	}
	return nil, errors.Join(all...)
}

// lock waits until no other process holds the file.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("kernel: lock %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// Open returns the kernel of a package that is unpacked in dir.
func Open(dir, arch string) (*Kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("kernel: %d kernel images in %s, expected 1", len(images), dir)
	}
	k := &Kernel{Arch: arch, Image: images[0], modules: make(map[string]string), builtin: make(map[string]bool),
		Version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch name, _, isModule := strings.Cut(d.Name(), ".ko"); {
		case d.IsDir() && d.Name() == k.Version && filepath.Base(filepath.Dir(path)) == "modules":
			k.ModulesDir = path
		case d.Type().IsRegular() && isModule:
			k.modules[ModuleName(name)] = path
		}
		return nil
	})
	if err != nil || k.ModulesDir == "" {
		return k, err
	}
	list, err := os.ReadFile(filepath.Join(k.ModulesDir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(line)), ".ko")
		k.builtin[ModuleName(name)] = true
	}
	return k, nil
}
