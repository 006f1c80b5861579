package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// loadModules loads what the initial file system lists, in that order, with the parameters of the kernel's command line.
func loadModules() error {
	list, err := os.ReadFile(agent.ModulesPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	parameters := moduleParameters(string(line))
	var failed []error
	for path := range strings.Lines(string(list)) {
		path = strings.TrimSpace(path)
		if path == "" {
			continue
		}
		if err := loadModule(path, parameters[moduleName(path)]); err != nil && err != unix.EEXIST {
			failed = append(failed, fmt.Errorf("load %s: %w", path, err))
		}
	}
	return errors.Join(failed...)
}

func loadModule(path, parameters string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FinitModule(fd, parameters, 0)
}

// moduleName returns the name of the module in a file.
func moduleName(path string) string {
	name, _, _ := strings.Cut(path[strings.LastIndexByte(path, '/')+1:], ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// moduleParameters returns what a kernel's command line says to each module, as "module.parameter=value": the kernel itself
// obeys only those of modules that are built in.
func moduleParameters(line string) map[string]string {
	all := make(map[string]string)
	for word := range strings.FieldsSeq(line) {
		name, rest, ok := strings.Cut(word, ".")
		if key, _, _ := strings.Cut(word, "="); !ok || len(name) > len(key) || strings.ContainsAny(name, "=\"") {
			continue
		}
		name = strings.ReplaceAll(name, "-", "_")
		all[name] = strings.TrimSpace(all[name] + " " + rest)
	}
	return all
}
