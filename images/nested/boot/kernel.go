package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// kernel is an unpacked kernel package.
type kernel struct {
	version string
	image   string            // path of the bootable image
	modules map[string]string // path of each module's file, by name
}

// kernelPackages are the packages that depend on the newest kernel, best first: Debian's and Ubuntu's for virtual
// machines.
var kernelPackages = []string{"linux-image-cloud-amd64", "linux-image-virtual"}

// kernelPart matches the packages of a kernel's files, its image and its modules.
var kernelPart = regexp.MustCompile(`^linux-(image|modules)(-unsigned)?-[0-9]`)

// fetchKernel returns the kernel in dir, which it fills from the distribution's packages the first time.
func fetchKernel(ctx context.Context, dir string) (*kernel, error) {
	if k, err := findKernel(dir); err == nil {
		return k, nil
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		return nil, err
	}
	names, err := kernelParts(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Println("test-nested: fetch", strings.Join(names, ", "))
	get := exec.CommandContext(ctx, "apt-get", append([]string{"download"}, names...)...)
	get.Dir = fresh
	if out, err := get.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("apt-get download %s: %w: %s; apt-get update may help", strings.Join(names, " "), err, lastLine(out))
	}
	archives, err := filepath.Glob(filepath.Join(fresh, "*.deb"))
	if err != nil {
		return nil, err
	}
	for _, a := range archives {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", a, fresh).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w: %s", filepath.Base(a), err, lastLine(out))
		}
		if err := os.Remove(a); err != nil {
			return nil, err
		}
	}
	if _, err := findKernel(fresh); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(fresh, dir)); err != nil {
		return nil, err
	}
	return findKernel(dir)
}

// kernelParts returns the packages that the first known of kernelPackages stands for.
func kernelParts(ctx context.Context) ([]string, error) {
	for _, meta := range kernelPackages {
		out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests",
			"--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances", meta).Output()
		if err != nil {
			continue
		}
		var names []string
		for line := range strings.Lines(string(out)) {
			// A package's own line is not indented.
			if name := strings.TrimRight(line, "\n"); kernelPart.MatchString(name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			return names, nil
		}
	}
	return nil, fmt.Errorf("none of the kernel packages %s is known; apt-get update may help", strings.Join(kernelPackages, ", "))
}

// findKernel looks through an unpacked package.
func findKernel(dir string) (*kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("%d kernel images in %s, expected 1", len(images), dir)
	}
	k := &kernel{image: images[0], modules: make(map[string]string),
		version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok {
			k.modules[moduleName(name)] = path
		}
		return nil
	})
	return k, err
}

// lastLine returns the last line that says something.
func lastLine(out []byte) string {
	last := ""
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" {
			last = line
		}
	}
	return last
}
