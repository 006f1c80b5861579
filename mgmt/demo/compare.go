package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// compare takes the list from the scratch disk and compares it with what sha256sum says on the host.
func (d *demo) compare(ctx context.Context, files []string) error {
	f, err := os.Open(d.scratch())
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := readList(f, scratchSize)
	if err != nil {
		return fmt.Errorf("scratch disk: %w", err)
	}
	begin := time.Now()
	want, err := d.sums(ctx, files)
	if err != nil {
		return err
	}
	if n, first := differ(string(got), string(want)); n > 0 {
		return fmt.Errorf("%d lines of the list differ from sha256sum's, the first: %s", n, first)
	}
	d.say("compared", "%d files with sha256sum on the host, %.1f s: all equal", len(files), time.Since(begin).Seconds())
	return nil
}

// sums returns sha256sum's own list of files.
func (d *demo) sums(ctx context.Context, files []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "xargs", "-0", "sha256sum", "--")
	cmd.Dir = d.src
	cmd.Stdin = strings.NewReader(strings.Join(files, "\x00"))
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sha256sum: %w", err)
	}
	return b, nil
}

// differ counts the lines that only one of two lists has, or has elsewhere, and returns the first pair.
func differ(got, want string) (n int, first string) {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	at := func(l []string, i int) string {
		if i < len(l) {
			return l[i]
		}
		return ""
	}
	for i := range max(len(g), len(w)) {
		if a, b := at(g, i), at(w, i); a != b {
			if n == 0 {
				first = fmt.Sprintf("line %d is %q, not %q", i+1, a, b)
			}
			n++
		}
	}
	return n, first
}

// The list as fshash writes it: a header block, then the list. Numbers are little-endian.
const (
	listMagic = "GRAILFSH"
	listStart = 4096 // the list; its length stands at 8, its SHA-256 at 16
)

// readList returns the list on a scratch disk of size bytes.
func readList(r io.ReaderAt, size int64) ([]byte, error) {
	header := make([]byte, listStart)
	if _, err := r.ReadAt(header, 0); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(header, []byte(listMagic)) {
		return nil, errors.New("there is no list on it")
	}
	n := binary.LittleEndian.Uint64(header[8:])
	if n > uint64(size-listStart) {
		return nil, fmt.Errorf("its list claims %d bytes", n)
	}
	list := make([]byte, n)
	if _, err := r.ReadAt(list, listStart); err != nil {
		return nil, err
	}
	if sha256.Sum256(list) != [32]byte(header[16:48]) {
		return nil, errors.New("its list has the wrong checksum")
	}
	return list, nil
}
