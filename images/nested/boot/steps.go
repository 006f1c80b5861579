package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/grailos/grail/images/initramfs"
	"github.com/grailos/grail/images/nested/plan"
)

// programs are what is compiled into the machine's /bin, as the Makefile does it into bin.
var programs = []struct{ out, pkg string }{
	{"grailctl", "./mgmt/grailctl"},
	{"graild", "./mgmt/graild"},
	{"grailvm", "./hv/grailvm"},
	{"grailport", "./hv/grailport"},
	{"graillinux", "./personalities/linux/graillinux"},
	{"demo", "./mgmt/demo"},
	{"drivers/blk", "./drivervms/blk/guest"},
	{"examples/hello", "./personalities/native/examples/hello"},
	{"examples/fshash", "./personalities/native/examples/fshash"},
}

// testPackage is a package whose tests run inside.
type testPackage struct {
	path string
	only string // go test -run; empty: all
	skip string // go test -skip
	bare bool   // they run no guests that would have to be compiled
}

// testPackages are those that need the processor's virtualization, and those of tenants, as the machine has cgroups v2.
var testPackages = []testPackage{
	{path: "arch/amd64"}, {path: "vcpu/kvm"}, {path: "hv/mm"}, {path: "hv/sys"},
	{path: "mgmt/fence", bare: true},
	{path: "mgmt/daemon", bare: true, only: "Tenant|Share|TreeAndKernel|WithoutCgroups|Reservation|ForMemory|BelowUse", skip: "Thousand"},
}

// demoSource is the part of the Go installation's sources that the demo hashes inside: some 1,300 files, enough to crash a driver in the
// middle of each of its passes.
const demoSource = "src/internal"

// makeSteps compiles what the steps need, puts it into t, and returns the steps that opt asks for.
func makeSteps(ctx context.Context, opt *options, t *initramfs.Tree) ([]plan.Step, error) {
	if err := opt.install(ctx, t, "/init", "./images/nested/init"); err != nil {
		return nil, err
	}
	// What tests take for a program that is no guest, and for a file that is no program.
	t.Data("/bin/sh", []byte("#!/init\n"), 0o755)
	t.Data("/etc/passwd", []byte("root:x:0:0::/:/bin/sh\n"), 0o644)
	var steps []plan.Step
	for _, p := range testPackages {
		s, err := testStep(ctx, opt, t, p)
		if err != nil {
			return nil, err
		}
		if s != nil {
			steps = append(steps, *s)
		}
	}
	product, err := productSteps(ctx, opt, t)
	return append(steps, product...), err
}

// productSteps are those that use Grail as a person would.
func productSteps(ctx context.Context, opt *options, t *initramfs.Tree) ([]plan.Step, error) {
	all := []plan.Step{
		{Name: "doctor", Argv: []string{"/bin/grailctl", "doctor"}, TimeoutSeconds: 60},
		{Name: "hello", Argv: []string{"/bin/grailctl", "run", "--rm", "--engine", "kvm", "--", "/bin/examples/hello", "nested"},
			TimeoutSeconds: 60},
		{Name: "demo", Argv: []string{"/bin/demo", "-native", "-engine", "kvm", "-src", "/demo"}, TimeoutSeconds: 240},
	}
	var steps []plan.Step
	for _, s := range all {
		if opt.only.MatchString(s.Name) {
			steps = append(steps, s)
		}
	}
	if len(steps) == 0 {
		return nil, nil
	}
	for _, p := range programs {
		if err := opt.install(ctx, t, "/bin/"+p.out, p.pkg); err != nil {
			return nil, err
		}
	}
	if err := addTools(ctx, t, "mke2fs", "xargs", "sha256sum"); err != nil {
		return nil, err
	}
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	src, err := filepath.EvalSymlinks(filepath.Join(strings.TrimSpace(string(root)), demoSource))
	if err != nil {
		return nil, err
	}
	return steps, t.Folder("/demo", src)
}

// install compiles a command and puts it into t.
func (opt *options) install(ctx context.Context, t *initramfs.Tree, path, pkg string) error {
	out := filepath.Join(opt.build, "bin", path)
	t.File(path, out, 0o755)
	return goTool(ctx, "build", "-trimpath", "-o", out, pkg)
}

// guestsDir is where the tests find the guests that they would otherwise compile.
const guestsDir = "/guests"

// testStep compiles a package's tests, and has them make their guests. It returns nil if the package has no tests or
// is not asked for.
func testStep(ctx context.Context, opt *options, t *initramfs.Tree, tests testPackage) (*plan.Step, error) {
	pkg := tests.path
	if !opt.only.MatchString(pkg) {
		return nil, nil
	}
	name := strings.ReplaceAll(pkg, "/", "_") + ".test"
	binary := filepath.Join(opt.build, "bin", name)
	if err := os.Remove(binary); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if err := goTool(ctx, "test", "-c", "-o", binary, "./"+pkg); err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); os.IsNotExist(err) {
		return nil, nil
	}
	dir := filepath.Join("/src", pkg)
	t.Dir(dir, 0o755)
	t.File(filepath.Join("/tests", name), binary, 0o755)
	if err := t.Folder(filepath.Join(dir, "testdata"), filepath.Join(pkg, "testdata")); err != nil {
		return nil, err
	}
	if !tests.bare {
		guests := filepath.Join(opt.build, "guests", strings.ReplaceAll(pkg, "/", "_"))
		if err := makeGuests(ctx, binary, pkg, guests); err != nil {
			return nil, err
		}
		if err := t.Folder(filepath.Join(guestsDir, pkg), guests); err != nil {
			return nil, err
		}
	}
	s := &plan.Step{Name: pkg, Argv: []string{filepath.Join("/tests", name), "-test.v", "-test.timeout=240s"}, Dir: dir,
		Env: []string{"GRAIL_TEST_GUESTS=" + filepath.Join(guestsDir, pkg)}, TimeoutSeconds: 250, GoTest: true}
	if opt.count != 1 {
		s.Argv = append(s.Argv, fmt.Sprintf("-test.count=%d", opt.count))
	}
	run := tests.only
	if opt.tests != "" {
		run = opt.tests
	}
	if run != "" {
		s.Argv = append(s.Argv, "-test.run="+run)
	}
	if tests.skip != "" {
		s.Argv = append(s.Argv, "-test.skip="+tests.skip)
	}
	return s, nil
}

// makeGuests runs a package's tests so that they only compile their guests, into dir.
func makeGuests(ctx context.Context, binary, pkg, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, binary, "-test.timeout=300s")
	cmd.Dir = pkg
	cmd.Env = append(os.Environ(), "GRAIL_TEST_GUESTS="+dir, "GRAIL_TEST_GUESTS_ONLY=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the guests of %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// goTool runs the go command for a static program.
func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
