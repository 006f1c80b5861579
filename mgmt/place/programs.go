package place

import (
	"fmt"
	"os"
	"path/filepath"
)

// Program returns the path of one of Grail's own programs, by its path relative to bin: "grailvm", "graild",
// "drivers/blk". It is looked for in $GRAIL_LIBEXEC, beside the running program, and in ../libexec/grail
// and ../lib/grail from there.
func Program(name string) (string, error) {
	var dirs []string
	if d := os.Getenv("GRAIL_LIBEXEC"); d != "" {
		dirs = []string{d}
	} else {
		exe, err := os.Executable()
		if err != nil {
			return "", err
		}
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		bin := filepath.Dir(exe)
		dirs = []string{bin, filepath.Join(bin, "../libexec/grail"), filepath.Join(bin, "../lib/grail")}
	}
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return filepath.Abs(p)
		}
	}
	return "", fmt.Errorf("Grail's program %s is not in %s; run make build, or set GRAIL_LIBEXEC to the folder that holds it", name, dirs[0])
}

// Build returns the identity of a program file: another one after every build or installation.
func Build(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d-%d", st.Size(), st.ModTime().UnixNano()), nil
}
