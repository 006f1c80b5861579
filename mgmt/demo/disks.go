package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// goSource returns the source tree of the Go installation.
func goSource(ctx context.Context) (string, error) {
	b, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOROOT: %w; name a directory to hash with -src", err)
	}
	return filepath.Join(strings.TrimSpace(string(b)), "src"), nil
}

// Sizes of the disks, in bytes: what a file needs in the image beyond its content, room for the file system itself,
// and the scratch disk.
const (
	blockSize   = 4096
	inodeSize   = 256
	spareBytes  = 48 << 20
	spareInodes = 1024
	scratchSize = 16 << 20
)

// disks makes an ext4 image of the source tree and an empty scratch disk, and returns the tree's regular files, sorted,
// and the image's path.
func (d *demo) disks(ctx context.Context) (files []string, image string, err error) {
	begin := time.Now()
	size, inodes := int64(spareBytes), spareInodes
	err = filepath.WalkDir(d.src, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inodes++
		size += blockSize + inodeSize
		if !e.Type().IsRegular() {
			return ctx.Err()
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		size += info.Size()
		rel, err := filepath.Rel(d.src, p)
		files = append(files, rel)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(files) == 0 {
		return nil, "", fmt.Errorf("%s has no files to hash", d.src)
	}
	slices.Sort(files)
	mke2fs, err := find("mke2fs", "e2fsprogs")
	if err != nil {
		return nil, "", err
	}
	image = filepath.Join(d.dir, "src.img")
	cmd := exec.CommandContext(ctx, mke2fs, "-q", "-t", "ext4", "-b", fmt.Sprint(blockSize), "-I", fmt.Sprint(inodeSize),
		"-N", fmt.Sprint(inodes), "-d", d.src, image, fmt.Sprintf("%dk", size>>10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("mke2fs: %w: %s", err, bytes.TrimSpace(out))
	}
	f, err := os.Create(d.scratch())
	if err != nil {
		return nil, "", err
	}
	if err := errors.Join(f.Truncate(scratchSize), f.Close()); err != nil {
		return nil, "", err
	}
	d.say("disks", "an ext4 image of %s, %d files, %d MiB, and an empty scratch disk; made in %.1f s", d.src, len(files), size>>20,
		time.Since(begin).Seconds())
	return files, image, nil
}

func (d *demo) scratch() string { return filepath.Join(d.dir, "out.img") }

// find looks for a program also where only root's PATH leads.
func find(name, pkg string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed; install the package %s", name, pkg)
}
