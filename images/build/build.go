package build

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/grailos/grail/images/apt"
)

// Options say what to build. Exactly one of Folder, Tarball, Layout, Archive and Suite is set.
type Options struct {
	Name string // of the image in the Store

	Folder  string // on this host
	Tarball string // plain, or packed with gzip, zstd or xz
	Layout  string // folder of an OCI image layout
	Archive string // what docker save has written
	Suite   string // Debian's or Ubuntu's, such as "bookworm": made by mmdebstrap

	Packages []string // to be installed in a Suite, beside the essential ones
	Arch     string   // "amd64" or "arm64"; of a Layout, which of its images. Empty: amd64
	SizeMiB  int64    // of the disk; 0: what the content needs, and room to work
}

// maxContent bounds what is taken from a source if Options.SizeMiB does not, in bytes.
const maxContent = 64 << 30

// Build makes an image and keeps it in the store, in place of an older one of that name. Errors: ErrTooLarge; a person's mistakes; those of the
// host's programs (mke2fs, debugfs, mmdebstrap).
func Build(ctx context.Context, s *Store, o Options) (*Image, error) {
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	if o.Arch == "" {
		o.Arch = "amd64"
	}
	if !slices.Contains(apt.Architectures, o.Arch) {
		return nil, fmt.Errorf("build: unknown architecture %q; expected one of %s", o.Arch, strings.Join(apt.Architectures, ", "))
	}
	if o.SizeMiB < 0 || o.SizeMiB > 16<<20 {
		return nil, fmt.Errorf("build: a disk of %d MiB; expected 8 to 16777216", o.SizeMiB)
	}
	work, err := os.MkdirTemp(s.dir, ".build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	limit := int64(maxContent)
	if o.SizeMiB > 0 {
		limit = o.SizeMiB * mib
	}
	data := filepath.Join(work, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	c := newContent(data, limit)
	image := &Image{Name: o.Name, Arch: o.Arch}
	if err := fill(ctx, c, &o, image); err != nil {
		return nil, err
	}
	size := c.diskSize()
	if o.SizeMiB > 0 {
		size = o.SizeMiB * mib
	}
	disk := filepath.Join(work, diskFile)
	if err := c.writeDisk(ctx, disk, size, "root"); err != nil {
		return nil, err
	}
	image.Files = len(c.nodes)
	return image, s.put(image, disk)
}

// fill reads the source.
func fill(ctx context.Context, c *content, o *Options, image *Image) error {
	set := 0
	for _, v := range []string{o.Folder, o.Tarball, o.Layout, o.Archive, o.Suite} {
		if v != "" {
			set++
		}
	}
	if set != 1 {
		return fmt.Errorf("build: %d sources; expected one folder, tarball, OCI layout, docker archive or suite", set)
	}
	switch {
	case o.Folder != "":
		image.Source = "folder " + o.Folder
		if st, err := os.Stat(o.Folder); err != nil {
			return err
		} else if !st.IsDir() {
			return fmt.Errorf("build: %s is no folder", o.Folder)
		}
		return c.addFolder(o.Folder)
	case o.Tarball != "":
		image.Source = "tarball " + o.Tarball
		return addTarball(c, o.Tarball)
	case o.Layout != "":
		image.Source = "OCI layout " + o.Layout
		img, err := fromLayout(o.Layout, o.Arch)
		if err != nil {
			return err
		}
		return addImage(c, img, image)
	case o.Archive != "":
		image.Source = "docker archive " + o.Archive
		img, err := tarball.ImageFromPath(o.Archive, nil)
		if err != nil {
			return fmt.Errorf("build: %s: %w", o.Archive, err)
		}
		return addImage(c, img, image)
	}
	image.Source = "suite " + o.Suite
	return addSuite(ctx, c, o)
}

// addTarball unpacks an archive.
func addTarball(c *content, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	start, _ := in.Peek(6) // a shorter one is no archive, and told so below
	var r io.Reader = in
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(in)
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(in); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(start, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(in)
	}
	if err != nil {
		return fmt.Errorf("build: %s: %w", path, err)
	}
	return c.addTar(r)
}

// fromLayout returns a layout's image for the architecture.
func fromLayout(path, arch string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("build: %s is no OCI image layout: %w", path, err)
	}
	return fromIndex(index, arch, 0)
}

// maxIndexes bounds how deep indexes may lie in indexes.
const maxIndexes = 4

func fromIndex(index v1.ImageIndex, arch string, depth int) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, d := range m.Manifests {
		switch {
		case d.MediaType.IsIndex() && depth < maxIndexes:
			sub, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			if img, err := fromIndex(sub, arch, depth+1); err == nil {
				return img, nil
			}
		case d.MediaType.IsImage():
			img, err := index.Image(d.Digest)
			if err != nil {
				return nil, err
			}
			config, err := img.ConfigFile()
			if err != nil {
				return nil, err
			}
			if config.Architecture == arch && (config.OS == "" || config.OS == "linux") {
				return img, nil
			}
			seen = append(seen, config.OS+"/"+config.Architecture)
		}
	}
	return nil, fmt.Errorf("build: the layout has no image for linux/%s, only %.200q", arch, seen)
}

// addImage adds an image's layers, flattened, and keeps what it says about running it.
func addImage(c *content, img v1.Image, image *Image) error {
	config, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("build: the image's configuration: %w", err)
	}
	if a := config.Architecture; a != "" && a != image.Arch {
		return fmt.Errorf("build: the image is for %.40q, expected %s", a, image.Arch)
	}
	image.Argv = append(slices.Clone(config.Config.Entrypoint), config.Config.Cmd...)
	image.Env, image.Dir, image.User = config.Config.Env, config.Config.WorkingDir, config.Config.User
	r := mutate.Extract(img)
	return errors.Join(c.addTar(r), r.Close())
}

// suiteName and packageName match what mmdebstrap may be told: never an option.
var (
	suiteName   = regexp.MustCompile(`^[a-z][a-z0-9.-]*$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)
)

// addSuite has mmdebstrap make a system.
func addSuite(ctx context.Context, c *content, o *Options) error {
	if !suiteName.MatchString(o.Suite) {
		return fmt.Errorf("build: %q is no suite's name", o.Suite)
	}
	out := filepath.Join(c.dir, "suite.tar")
	args := []string{"--quiet", "--variant=minbase", "--architectures=" + o.Arch, "--format=tar"}
	for _, p := range o.Packages {
		if !packageName.MatchString(p) {
			return fmt.Errorf("build: %q is no package's name", p)
		}
		args = append(args, "--include="+p)
	}
	mmdebstrap, err := find("mmdebstrap", "mmdebstrap")
	if err != nil {
		return err
	}
	mirror, err := apt.Mirror(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mmdebstrap, append(args, o.Suite, out, mirror)...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1", "LC_ALL=C")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: mmdebstrap %s: %w: %s", o.Suite, err, lastLine(b))
	}
	return errors.Join(addTarball(c, out), os.Remove(out))
}
