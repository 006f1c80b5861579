package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/apt"
	"github.com/grailos/grail/images/busybox"
)

// guestFiles are the program that the Linux VM builds beside SQLite, and how.
//
//go:embed guest
var guestFiles embed.FS

// sqlite is a Go module that comes with the source of SQLite, and so can be fetched, and its content be checked, where Go modules can.
const sqlite = "github.com/mattn/go-sqlite3@v1.14.33"

// guestPackages are the compiler, and what a program needs to be compiled and to run.
var guestPackages = []string{"tcc", "libc6", "libc6-dev", "linux-libc-dev"}

// Paths in the guest's system.
const (
	guestSource = "/src"
	guestResult = "/result"
)

// guestTree returns a folder with the Linux VM's system, which is made the first time: packages of the distribution that are unpacked and not
// installed, busybox, and sources.
func (d *demo) guestTree(ctx context.Context) (string, error) {
	if err := os.MkdirAll(d.cache, 0o755); err != nil {
		return "", err
	}
	tree := filepath.Join(d.cache, "system")
	if _, err := os.Stat(tree); err != nil {
		begin := time.Now()
		fresh, err := os.MkdirTemp(d.cache, ".system-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(fresh)
		if err := d.makeTree(ctx, fresh); err != nil {
			return "", err
		}
		if err := os.Rename(fresh, tree); err != nil {
			return "", err
		}
		d.say("system", "%s and busybox of this distribution, and the source of SQLite; fetched in %.1f s", strings.Join(guestPackages, ", "),
			time.Since(begin).Seconds())
	}
	// These may have changed since.
	files, err := fs.ReadDir(guestFiles, "guest")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := guestFiles.ReadFile("guest/" + f.Name())
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(tree, guestSource, f.Name()), b, 0o644); err != nil {
			return "", err
		}
	}
	return tree, nil
}

func (d *demo) makeTree(ctx context.Context, dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // it is a system's root
		return err
	}
	source, err := apt.NewSource(ctx, filepath.Join(d.cache, "apt"), "amd64")
	if err != nil {
		return err
	}
	if err := source.Unpack(ctx, dir, guestPackages...); err != nil {
		return err
	}
	box, err := busybox.Fetch(ctx, filepath.Join(d.cache, "busybox"), "amd64")
	if err != nil {
		return err
	}
	for _, name := range []string{"bin", "dev", "proc", "sys", "run", "tmp", "root", "etc", "src"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(filepath.Join(dir, "bin/busybox"), box, 0o755); err != nil {
		return err
	}
	for _, name := range busybox.Applets {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", sqlite).Output()
	if err != nil {
		return fmt.Errorf("go mod download %s: %w: %s", sqlite, err, bytes.TrimSpace(out))
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return fmt.Errorf("go mod download %s: %w", sqlite, err)
	}
	for from, to := range map[string]string{"sqlite3-binding.c": "sqlite3.c", "sqlite3-binding.h": "sqlite3.h"} {
		if err := copyFile(filepath.Join(dir, guestSource, to), filepath.Join(module.Dir, from), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}

// buildCommand is what the guest is told to do.
var buildCommand = []string{"/bin/sh", guestSource + "/build.sh", guestSource, guestResult}

// buildHere does on the host, in the same system but on the host's kernel and disk, what the guest does, and returns the list of checksums.
func (d *demo) buildHere(ctx context.Context, tree string) (string, error) {
	defer os.RemoveAll(filepath.Join(tree, guestResult))
	cmd := exec.CommandContext(ctx, buildCommand[0], buildCommand[1:]...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/bin:/usr/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: tree}
	if uid, gid := unix.Getuid(), unix.Getgid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build on the host: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	return sums(string(out)), nil
}

// sums returns the lines that sha256sum has printed.
func sums(out string) string {
	lines := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return !sumLine.MatchString(l) })
	return strings.Join(lines, "\n")
}
