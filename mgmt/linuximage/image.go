// Package linuximage keeps what Linux VMs boot from, in Grail's state folder: the distribution's kernel for each architecture, an initial
// file system with our agent and busybox, and for each VM what its agent is told.
package linuximage

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/grailos/grail/images/busybox"
	"github.com/grailos/grail/images/kernel"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/personalities/linux/agent"
	"github.com/grailos/grail/personalities/linux/agent/pack"
)

// Boot is what a VM boots from: paths.
type Boot struct {
	Kernel  string
	Initrds []string
}

func kernelDir(dir, arch string) string { return filepath.Join(dir, "kernel", arch) }

// initrd is where the initial file system for a kernel and an agent lies. Another agent makes another name.
func initrd(dir, arch, version, build string) string {
	return filepath.Join(dir, fmt.Sprintf("initrd-%s-%s-%s", arch, version, build))
}

// Open returns what is there for an architecture. Errors: it is not.
func Open(dir, arch string) (Boot, error) {
	missing := api.Errorf(api.Invalid, "there is no Linux image for %s yet; run grailctl image prepare --arch %s", arch, arch)
	k, err := kernel.Open(kernelDir(dir, arch), arch)
	if err != nil {
		return Boot{}, missing
	}
	build, err := agentBuild(arch)
	if err != nil {
		return Boot{}, err
	}
	b := Boot{Kernel: k.Image, Initrds: []string{initrd(dir, arch, k.Version, build)}}
	if _, err := os.Stat(b.Initrds[0]); err != nil {
		return Boot{}, missing
	}
	return b, nil
}

func agentProgram(arch string) (string, error) {
	return place.Program("guests/" + arch + "/grail-init")
}

func agentBuild(arch string) (string, error) {
	p, err := agentProgram(arch)
	if err != nil {
		return "", err
	}
	b, err := place.Build(p)
	return strings.Map(func(r rune) rune {
		if r == '/' || r == ':' {
			return '-'
		}
		return r
	}, b), err
}

// Ensure makes what Open returns where it is not there: it fetches the kernel from the distribution's packages, which takes a while the
// first time.
func Ensure(ctx context.Context, dir, arch string) (Boot, error) {
	if b, err := Open(dir, arch); err == nil {
		return b, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Boot{}, err
	}
	k, err := kernel.Fetch(ctx, filepath.Join(dir, "kernel"), arch)
	if err != nil {
		return Boot{}, err
	}
	build, err := agentBuild(arch)
	if err != nil {
		return Boot{}, err
	}
	program, err := agentProgram(arch)
	if err != nil {
		return Boot{}, err
	}
	box, err := busybox.Fetch(ctx, filepath.Join(dir, "busybox"), arch)
	if err != nil {
		return Boot{}, err
	}
	t := busybox.Tree(box)
	if err := pack.Add(t, k, program); err != nil {
		return Boot{}, err
	}
	out := initrd(dir, arch, k.Version, build)
	if err := t.Write(out); err != nil {
		return Boot{}, err
	}
	return Open(dir, arch)
}

// Config writes what a VM's agent is told, as a further initial file system at path, and returns path.
func Config(path string, c *agent.Config) (string, error) {
	r, err := pack.Config(c)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, b, 0o600)
}
