package kernel

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// ModuleName returns a module's name as modules name each other: file names may have hyphens instead.
func ModuleName(file string) string { return strings.ReplaceAll(file, "-", "_") }

// Module is a module's object file, unpacked.
type Module struct {
	Name string
	Data []byte
}

// Modules returns the named modules and all that they need, in the order of loading. What is built into the kernel is left
// out. Errors: a name that the kernel does not know.
func (k *Kernel) Modules(names ...string) ([]Module, error) {
	var order []Module
	done := make(map[string]bool)
	var add func(name string, wanted bool) error
	add = func(name string, wanted bool) error {
		name = ModuleName(name)
		file, ok := k.modules[name]
		if done[name] || k.builtin[name] || !ok && !wanted {
			return nil
		}
		if !ok {
			return fmt.Errorf("kernel %s has no module %s", k.Version, name)
		}
		done[name] = true
		image, err := readModule(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		needs, err := moduleNeeds(image)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		for _, n := range needs {
			if err := add(n, false); err != nil {
				return err
			}
		}
		order = append(order, Module{Name: name, Data: image})
		return nil
	}
	for _, n := range names {
		if err := add(n, true); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// Has reports whether the kernel has the module, built in or not.
func (k *Kernel) Has(name string) bool {
	name = ModuleName(name)
	return k.builtin[name] || k.modules[name] != ""
}

// maxModule bounds a module's size in bytes.
const maxModule = 64 << 20

// readModule returns a module's object file, unpacked if its name says so.
func readModule(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch ext := filepath.Ext(path); ext {
	case ".ko":
	case ".xz":
		if r, err = xz.NewReader(f); err != nil {
			return nil, err
		}
	case ".zst":
		d, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r = d
	default:
		return nil, fmt.Errorf("unknown packing %s", ext)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule))
	if err == nil && len(b) == maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	return b, err
}

// moduleNeeds returns the modules that a module's object file names as its dependencies. The package has no
// modules.dep: depmod makes it when a package is installed.
func moduleNeeds(image []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(string(list), ","), nil
		}
	}
	return nil, nil
}
