// Command grailctl creates and runs personality VMs and driver VMs. It starts the daemon graild when none runs.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/personalities/native"
)

func main() { os.Exit(Main()) }

// Main runs grailctl with the process's arguments and returns its exit code.
func Main() int {
	c := &cli{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	root := c.command()
	err := root.Execute()
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "grailctl:", oneLine(err))
		return codeOf(err)
	}
	return api.ExitOK
}

// exitCode is an error that only says with what code to exit; all else was said already.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// notFound marks a program that does not exist.
type notFound struct{ error }

// codeOf returns the exit code for an error.
func codeOf(err error) int {
	var missing notFound
	switch {
	case errors.As(err, &missing):
		return api.ExitNotFound
	case errors.Is(err, native.ErrProgram), errors.Is(err, os.ErrPermission):
		return api.ExitCannotRun
	case api.KindOf(err) == api.CannotRun:
		return api.ExitCannotRun
	}
	return api.ExitError
}

// oneLine keeps an error on one line, whatever a library put into it.
func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
}
