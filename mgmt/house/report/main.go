// Command report runs "go test -json" and tells what a person wants to know of it: which packages passed, the
// output of what failed, and why tests were skipped. Its exit code is 1 when a test failed, and also when engine kvm
// went untested in CI (CI=true) although the machine has /dev/kvm.
//
//	report -- go test -json ./...
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "report: no command; give one after --")
		os.Exit(2)
	}
	ok, err := run(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		ok = false
	}
	if !ok {
		os.Exit(1)
	}
}

// run runs the tests and reports whether all is well.
func run(command []string) (bool, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	t := newTally(os.Stdout)
	if err := t.read(out); err != nil {
		_, _ = io.Copy(os.Stderr, out)
		_ = cmd.Wait()
		return false, fmt.Errorf("output of %s: %w", command[0], err)
	}
	err = cmd.Wait()
	_, kvm := os.Stat("/dev/kvm")
	return t.end(os.Getenv("CI") == "true", kvm == nil) && err == nil, nil
}
