package build

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// ErrNoImage says that the store has no image of a name.
var ErrNoImage = errors.New("build: no such image")

// Image is a root disk in a Store.
type Image struct {
	Name      string
	Arch      string
	Source    string // for people
	Digest    string // "sha256:" and the disk's hash
	SizeBytes int64  // of the disk
	UsedBytes int64  // on the host: the disk has holes
	Files     int
	Created   time.Time // when it was built; not part of the disk

	// What a container image says about running it.
	Argv []string `json:",omitempty"`
	Env  []string `json:",omitempty"`
	Dir  string   `json:",omitempty"`
	User string   `json:",omitempty"`

	// Disk is the path of the disk, ext4 without a partition table.
	Disk string `json:"-"`
}

// Files of an image's folder.
const (
	diskFile = "root.ext4"
	metaFile = "image.json"
)

// Store is a folder of images, one folder each.
type Store struct{ dir string }

// OpenStore returns the store in dir, which is made if it is missing.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return &Store{dir}, nil
}

var imageName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func checkName(name string) error {
	if !imageName.MatchString(name) {
		return fmt.Errorf("build: %q is no image's name; expected up to 63 of a-z, 0-9, dot, hyphen, underscore, a letter or digit first", name)
	}
	return nil
}

// put moves a finished disk into the store.
func (s *Store) put(i *Image, disk string) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if i.SizeBytes, err = io.Copy(h, f); err != nil {
		return err
	}
	i.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	i.Created = time.Now().UTC().Truncate(time.Second)
	b, err := json.MarshalIndent(i, "", "\t")
	if err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(s.dir, ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	final := filepath.Join(s.dir, i.Name)
	err = errors.Join(os.WriteFile(filepath.Join(fresh, metaFile), append(b, '\n'), 0o644), os.Rename(disk, filepath.Join(fresh, diskFile)),
		os.Chmod(fresh, 0o755))
	if err != nil {
		return err
	}
	// A VM that runs from the older one keeps its open file.
	if err := errors.Join(os.RemoveAll(final), os.Rename(fresh, final)); err != nil {
		return err
	}
	i.complete(final)
	return nil
}

// complete fills in what is not stored.
func (i *Image) complete(dir string) {
	i.Disk = filepath.Join(dir, diskFile)
	i.UsedBytes = usedBytes(i.Disk)
}

// Inspect returns an image. Errors: ErrNoImage.
func (s *Store) Inspect(name string) (*Image, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, name)
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoImage, name)
	}
	if err != nil {
		return nil, err
	}
	i := &Image{}
	if err := json.Unmarshal(b, i); err != nil {
		return nil, fmt.Errorf("build: image %s: %w", name, err)
	}
	i.Name = name
	i.complete(dir)
	return i, nil
}

// List returns all images, by name.
func (s *Store) List() ([]*Image, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var list []*Image
	for _, e := range entries {
		if !e.IsDir() || !imageName.MatchString(e.Name()) {
			continue
		}
		i, err := s.Inspect(e.Name())
		if errors.Is(err, ErrNoImage) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b *Image) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Remove removes an image. Errors: ErrNoImage.
func (s *Store) Remove(name string) error {
	if _, err := s.Inspect(name); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(s.dir, name))
}

func usedBytes(path string) int64 {
	blocks, err := allocated(path)
	if err != nil {
		return 0
	}
	return blocks * 512
}
