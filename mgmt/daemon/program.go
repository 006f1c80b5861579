package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/personalities/native"
)

// maxProgram bounds a driver's program, in bytes.
const maxProgram = 256 << 20

// programPath returns the file of a driver's program: the one with that digest, which was kept for the driver, or the installed one of
// its type if digest is empty.
func (dr *driver) programPath(digest string) (string, error) {
	if digest == "" {
		return place.Program("drivers/" + dr.rec.Config.Type)
	}
	return filepath.Join(dr.d.dirs.VM(dr.name()), "program."+digest), nil
}

// keepProgram copies a program to where programPath finds it, on disk when it returns, so that also the instances after a restart of graild can
// run it. Errors: it is no program for a driver VM.
func (dr *driver) keepProgram(f *os.File) (digest string, err error) {
	if err := native.Check(f); err != nil {
		return "", api.Errorf(api.Invalid, "%v", err)
	}
	dir := dr.d.dirs.VM(dr.name())
	t, err := os.CreateTemp(dir, ".program-")
	if err != nil {
		return "", err
	}
	defer os.Remove(t.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, h), io.NewSectionReader(f, 0, maxProgram+1))
	if err = errors.Join(err, t.Sync(), t.Close()); err != nil {
		return "", fmt.Errorf("keep the program: %w", err)
	}
	if n > maxProgram {
		return "", api.Errorf(api.Invalid, "a driver's program of more than %d MiB is too large", maxProgram>>20)
	}
	digest = hex.EncodeToString(h.Sum(nil))
	path, err := dr.programPath(digest)
	if err != nil {
		return "", err
	}
	return digest, os.Rename(t.Name(), path)
}

// dropPrograms removes the kept programs that the driver does not need any more. The caller does not hold dr.mu.
func (dr *driver) dropPrograms() {
	dr.mu.Lock()
	keep := map[string]bool{dr.rec.Program: true, dr.rec.Runs: true}
	if dr.rec.Upgrade != nil {
		keep[dr.rec.Upgrade.From] = true
	}
	dr.mu.Unlock()
	paths, err := filepath.Glob(filepath.Join(dr.d.dirs.VM(dr.name()), "program.*"))
	if err != nil {
		return
	}
	for _, p := range paths {
		if !keep[filepath.Ext(p)[1:]] {
			_ = os.Remove(p)
		}
	}
}
