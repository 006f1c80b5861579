package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// diskID is the UUID of every disk, and the seed of its folders' hashes: nothing may differ between two builds. Guests name disks by their serial
// numbers.
const diskID = "67726169-6c00-4000-8000-000000000001"

// features are ext4's, spelled out as the host's mke2fs.conf is not read.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file," +
	"dir_nlink,extra_isize,metadata_csum"

const mib = 1 << 20

// find looks for a program also where only root's PATH leads.
func find(name, pack string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("build: %s not found; install the package %s", name, pack)
}

// diskSize returns how large a disk is that holds c with room to work, in bytes.
func (c *content) diskSize() int64 {
	need := c.bytes + int64(len(c.nodes))*4096 // inodes, part of blocks
	return (need + need/4 + 96*mib + mib - 1) / mib * mib
}

// writeDisk makes a disk of the given size at out.
func (c *content) writeDisk(ctx context.Context, out string, size int64, label string) error {
	mke2fs, err := find("mke2fs", "e2fsprogs")
	if err != nil {
		return err
	}
	debugfs, err := find("debugfs", "e2fsprogs")
	if err != nil {
		return err
	}
	if err := c.settle(); err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	// Enough inodes for all, and as many again to work with.
	inodes := max(int64(len(c.nodes))*2, size/16384) + 1024
	args := []string{"-q", "-F", "-O", features, "-b", "4096", "-I", "256", "-m", "0", "-N", fmt.Sprint(inodes), "-U", diskID, "-L", label,
		"-E", "hash_seed=" + diskID + ",lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0", out}
	if b, err := command(ctx, mke2fs, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("build: mke2fs: %w: %s", err, bytes.TrimSpace(b))
	}
	script := filepath.Join(c.dir, "script")
	if err := c.writeScript(script); err != nil {
		return err
	}
	// It says what it does on its output, and what went wrong among its errors, where its name stands first; its exit code says nothing.
	run := command(ctx, debugfs, "-w", "-f", script, out)
	var errs bytes.Buffer
	run.Stderr = &errs
	if err := run.Run(); err != nil {
		return fmt.Errorf("build: debugfs: %w: %s", err, lastLine(errs.Bytes()))
	}
	for line := range strings.Lines(errs.String()) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "debugfs ") {
			continue
		}
		if strings.Contains(line, "Could not allocate") || strings.Contains(line, "No free space") {
			return fmt.Errorf("%w: %d MiB", ErrTooLarge, size/mib)
		}
		return fmt.Errorf("build: debugfs: %s", line)
	}
	return nil
}

// command returns one of e2fsprogs that does not look at the clock or the user's settings.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC", "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1", "MKE2FS_CONFIG=/dev/null"}
	return cmd
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// quote returns a word of debugfs's commands. A name has no line feed (content.add).
func quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// writeScript writes the commands that fill the disk.
func (c *content) writeScript(out string) (err error) {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	defer func() { err = errors.Join(err, w.Flush()) }()
	names := make(map[string]int) // of each file that has several
	for _, n := range c.nodes {
		if n.same != "" {
			names[n.same]++
		}
	}
	in := ""
	for number, p := range c.sorted() {
		n, q, base := c.nodes[p], quote(p), quote(path.Base(p))
		// Some of the commands take a name and no path.
		if dir := path.Dir(p); dir != in {
			in = dir
			fmt.Fprintf(w, "cd %s\n", quote(dir))
		}
		if n.same != "" {
			fmt.Fprintf(w, "ln %s %s\n", quote(n.same), q)
			continue
		}
		kind := n.mode & unix.S_IFMT
		switch kind {
		case unix.S_IFDIR:
			if p != "/" {
				fmt.Fprintf(w, "mkdir %s\n", base)
			}
		case unix.S_IFREG:
			fmt.Fprintf(w, "write %s %s\n", quote(n.data), base)
		case unix.S_IFLNK:
			fmt.Fprintf(w, "symlink %s %s\n", base, quote(n.link))
		case unix.S_IFCHR:
			fmt.Fprintf(w, "mknod %s c %d %d\n", base, n.major, n.minor)
		case unix.S_IFBLK:
			fmt.Fprintf(w, "mknod %s b %d %d\n", base, n.major, n.minor)
		case unix.S_IFIFO:
			fmt.Fprintf(w, "mknod %s p\n", base)
		}
		if kind != unix.S_IFLNK {
			fmt.Fprintf(w, "sif %s mode 0%o\n", q, n.mode)
		}
		fmt.Fprintf(w, "sif %s uid %d\nsif %s gid %d\n", q, n.uid, q, n.gid)
		if k := names[p]; k > 0 {
			fmt.Fprintf(w, "sif %s links_count %d\n", q, k+1)
		}
		for _, name := range sortedKeys(n.xattrs) {
			value := filepath.Join(c.dir, "value-"+strconv.Itoa(number)+name)
			if err := os.WriteFile(value, []byte(n.xattrs[name]), 0o600); err != nil {
				return err
			}
			fmt.Fprintf(w, "ea_set -f %s %s %s\n", quote(value), q, name)
		}
	}
	// The times come last, as every entry changes its folder.
	for _, p := range c.sorted() {
		if n := c.nodes[p]; n.same == "" {
			for _, field := range []string{"mtime", "ctime", "atime", "crtime"} {
				fmt.Fprintf(w, "sif %s %s @%d\n", quote(p), field, max(n.mtime, 0))
			}
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	var list []string
	for k := range m {
		list = append(list, k)
	}
	slices.Sort(list)
	return list
}

// allocated returns how many blocks of 512 bytes a file has.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Blocks, err
}
