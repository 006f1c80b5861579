package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/grailos/grail/images/nested/plan"
)

// programs are what is compiled into the machine's /bin, by package.
var programs = map[string]string{
	"grailctl":    "./mgmt/grailctl",
	"graild":      "./mgmt/graild",
	"grailvm":     "./hv/grailvm",
	"grailport":   "./hv/grailport",
	"drivers/blk": "./drivervms/blk/guest",
	"hello":       "./personalities/native/examples/hello",
	"fshash":      "./personalities/native/examples/fshash",
}

// testPackages are the packages whose tests run inside.
var testPackages = []string{"arch/amd64", "vcpu/kvm", "hv/mm", "hv/sys"}

// makeSteps compiles what the steps need, puts it into t, and returns the steps that opt asks for.
func makeSteps(ctx context.Context, opt *options, t *tree) ([]plan.Step, error) {
	bin := filepath.Join(opt.build, "bin")
	if err := goBuild(ctx, filepath.Join(bin, "init"), "./images/nested/init"); err != nil {
		return nil, err
	}
	t.file("/init", filepath.Join(bin, "init"), 0o755)
	// What tests take for a program that is no guest, and for a file that is no program.
	t.data("/bin/sh", []byte("#!/init\n"), 0o755)
	t.data("/etc/passwd", []byte("root:x:0:0::/:/bin/sh\n"), 0o644)
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
	return steps, nil
}

// guestsDir is where the tests find the guests that they would otherwise compile.
const guestsDir = "/guests"

// testStep compiles a package's tests, and has them make their guests. It returns nil if the package has no tests or
// is not asked for.
func testStep(ctx context.Context, opt *options, t *tree, pkg string) (*plan.Step, error) {
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
	t.dir(dir)
	t.file(filepath.Join("/tests", name), binary, 0o755)
	if err := t.folder(filepath.Join(dir, "testdata"), filepath.Join(pkg, "testdata")); err != nil {
		return nil, err
	}
	guests := filepath.Join(opt.build, "guests", strings.ReplaceAll(pkg, "/", "_"))
	if err := makeGuests(ctx, binary, pkg, guests); err != nil {
		return nil, err
	}
	if err := t.folder(filepath.Join(guestsDir, pkg), guests); err != nil {
		return nil, err
	}
	s := &plan.Step{Name: pkg, Argv: []string{filepath.Join("/tests", name), "-test.v", "-test.timeout=240s"}, Dir: dir,
		Env: []string{"GRAIL_TEST_GUESTS=" + filepath.Join(guestsDir, pkg)}, TimeoutSeconds: 250, GoTest: true}
	if opt.count != 1 {
		s.Argv = append(s.Argv, fmt.Sprintf("-test.count=%d", opt.count))
	}
	if opt.tests != "" {
		s.Argv = append(s.Argv, "-test.run="+opt.tests)
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

// goBuild compiles a command.
func goBuild(ctx context.Context, out, pkg string) error {
	return goTool(ctx, "build", "-o", out, pkg)
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
