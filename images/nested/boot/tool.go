package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/grailos/grail/images/initramfs"
)

// library matches a file in ldd's output: a library, or the loader itself.
var library = regexp.MustCompile(`(?m)^\t(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$`)

// addTools puts programs of the host into t's /bin, with the libraries that they need.
func addTools(ctx context.Context, t *initramfs.Tree, names ...string) error {
	have := make(map[string]bool)
	for _, name := range names {
		path, err := findTool(name)
		if err != nil {
			return err
		}
		t.File("/bin/"+name, path, 0o755)
		out, err := exec.CommandContext(ctx, "ldd", path).CombinedOutput()
		if err != nil {
			continue // a static program has none
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			if p := filepath.Clean(m[1]); !have[p] {
				have[p] = true
				t.File(p, p, 0o755)
			}
		}
	}
	return nil
}

// findTool looks for a program also where only root's PATH leads.
func findTool(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s not found; install the package that holds it (images/setup nested does)", name)
}
