package apt

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Architectures are the distribution's names of those that Grail knows; they are Go's names, too.
var Architectures = []string{"amd64", "arm64"}

// ErrUnknownPackage says that no mirror that apt is configured for has the package.
var ErrUnknownPackage = errors.New("apt: unknown package")

// packageName is what apt may be asked for: never an option.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)

// Source is the distribution's archive, for one architecture.
type Source struct {
	arch    string
	options []string // of apt-get and apt-cache
	state   string   // folder of private lists; empty: the machine's own serve
	updated bool
}

// NewSource returns a source of packages for arch, one of Architectures. If arch is not the machine's own, or its apt has no lists,
// lists are fetched into stateDir, by Download and at most once in the Source's life. Errors: an unknown architecture, a machine without apt.
func NewSource(ctx context.Context, stateDir, arch string) (*Source, error) {
	if !slices.Contains(Architectures, arch) {
		return nil, fmt.Errorf("apt: unknown architecture %q; expected one of %s", arch, strings.Join(Architectures, ", "))
	}
	for _, program := range []string{"apt-get", "apt-cache", "dpkg", "dpkg-deb"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("apt: %s not found; a Debian or Ubuntu host is needed to fetch packages", program)
		}
	}
	abs, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, err
	}
	s := &Source{arch: arch, state: abs}
	own, err := exec.CommandContext(ctx, "dpkg", "--print-architecture").Output()
	if err != nil {
		return nil, fmt.Errorf("apt: dpkg --print-architecture: %w", err)
	}
	if strings.TrimSpace(string(own)) != arch {
		return s, s.usePrivate()
	}
	return s, nil
}

// usePrivate makes all further calls work on lists in s.state.
func (s *Source) usePrivate() error {
	for _, dir := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(s.state, dir), 0o755); err != nil {
			return err
		}
	}
	status := filepath.Join(s.state, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	for _, o := range []string{
		"Dir::State=" + s.state, "Dir::State::lists=" + filepath.Join(s.state, "lists"), "Dir::State::status=" + status,
		"Dir::Cache=" + filepath.Join(s.state, "cache"), "Dir::Log=" + s.state,
		"APT::Architecture=" + s.arch, "APT::Architectures=" + s.arch,
		"Acquire::Languages=none", "APT::Update::Post-Invoke=", "APT::Sandbox::User=",
	} {
		s.options = append(s.options, "-o", o)
	}
	return nil
}

// update fetches private lists.
func (s *Source) update(ctx context.Context) error {
	if s.updated {
		return nil
	}
	if s.options == nil {
		if err := s.usePrivate(); err != nil {
			return err
		}
	}
	out, err := exec.CommandContext(ctx, "apt-get", append(slices.Clone(s.options), "update", "-q")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt: fetch the package lists for %s: %w: %s", s.arch, err, lastLine(out))
	}
	s.updated = true
	return nil
}

// Depends returns all packages that name depends on, itself first, whose names match the expression. Errors: ErrUnknownPackage.
func (s *Source) Depends(ctx context.Context, name string, match *regexp.Regexp) ([]string, error) {
	if !packageName.MatchString(name) {
		return nil, fmt.Errorf("apt: %q is no package name", name)
	}
	names := s.depends(ctx, name, match)
	if len(names) == 0 {
		if err := s.update(ctx); err != nil {
			return nil, err
		}
		names = s.depends(ctx, name, match)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: %s for %s", ErrUnknownPackage, name, s.arch)
	}
	return names, nil
}

func (s *Source) depends(ctx context.Context, name string, match *regexp.Regexp) []string {
	args := append(slices.Clone(s.options), "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks",
		"--no-replaces", "--no-enhances", name)
	out, err := exec.CommandContext(ctx, "apt-cache", args...).Output()
	if err != nil {
		return nil
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		// A package's own line is not indented.
		if n := strings.TrimRight(line, "\n"); match.MatchString(n) && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// Unpack downloads the packages, checks their signatures' chain as apt does, and unpacks their files into dir.
func (s *Source) Unpack(ctx context.Context, dir string, names ...string) error {
	for _, n := range names {
		if !packageName.MatchString(n) {
			return fmt.Errorf("apt: %q is no package name", n)
		}
	}
	download, err := os.MkdirTemp(filepath.Dir(dir), ".packages-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(download)
	if err := s.download(ctx, download, names); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(download, "*.deb"))
	if err != nil {
		return err
	}
	if len(archives) != len(names) {
		return fmt.Errorf("apt: %d archives downloaded, expected %d", len(archives), len(names))
	}
	slices.Sort(archives)
	for _, a := range archives {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", a, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("apt: unpack %s: %w: %s", filepath.Base(a), err, lastLine(out))
		}
	}
	return nil
}

func (s *Source) download(ctx context.Context, dir string, names []string) error {
	for {
		get := exec.CommandContext(ctx, "apt-get", slices.Concat(s.options, []string{"download", "-q"}, names)...)
		get.Dir = dir
		out, err := get.CombinedOutput()
		if err == nil {
			return nil
		}
		if s.updated || ctx.Err() != nil {
			return fmt.Errorf("apt: download %s: %w: %s", strings.Join(names, " "), err, lastLine(out))
		}
		// The lists are missing, or older than what the mirror still has.
		if err := s.update(ctx); err != nil {
			return err
		}
	}
}

// lastLine returns the last line that says something.
func lastLine(out []byte) string {
	last := ""
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" {
			last = line
		}
	}
	return last
}

// Mirror returns the first archive that the machine's apt is configured for.
func Mirror(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt: apt-get indextargets: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	if !strings.HasPrefix(first, "http") && !strings.HasPrefix(first, "file:") && !strings.HasPrefix(first, "mirror") {
		return "", errors.New("apt: apt is configured for no archive")
	}
	return first, nil
}
