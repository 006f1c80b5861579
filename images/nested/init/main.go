// Command init is the first process of the emulated machine that images/nested/boot starts. It mounts what programs
// expect, loads the kernel modules, runs the steps of the plan one after the other, reports each on the second
// serial port, and ends the machine.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/nested/plan"
)

// runner is the argument of the process that does the work, so that the first one is free to collect orphans.
const runner = "runner"

func main() {
	if os.Getpid() != 1 {
		if len(os.Args) == 2 && os.Args[1] == runner {
			os.Exit(work())
		}
		fmt.Fprintln(os.Stderr, "init: to be started by a kernel, as process 1")
		os.Exit(2)
	}
	code := byte(plan.ExitFail)
	if err := mountAll(); err != nil {
		fmt.Println("init:", err)
	} else if err := watch(); err != nil {
		fmt.Println("init:", err)
	} else {
		code = plan.ExitPass
	}
	end(code)
}

// watch runs the runner, and collects every process that has lost its parent meanwhile.
func watch() error {
	cmd := exec.Command("/proc/self/exe", runner)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"}
	if err := cmd.Start(); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait for the runner: %w", err)
		case pid == cmd.Process.Pid && status.Exited() && status.ExitStatus() == 0:
			return nil
		case pid == cmd.Process.Pid:
			return fmt.Errorf("the runner ended: exit code %d, signal %v", status.ExitStatus(), status.Signal())
		}
	}
}

// end ends the machine, and says how it went.
func end(code byte) {
	unix.Sync()
	runtime.LockOSThread() // the permission is a thread's
	if err := unix.Ioperm(plan.ExitPort, 1, 1); err == nil {
		outb(plan.ExitPort, code)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // QEMU runs with -no-reboot
	select {}
}

// work does what the plan says and returns the exit code.
func work() int {
	port, err := os.OpenFile(plan.ResultPort, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		fmt.Println("init:", err)
		return 1
	}
	out := json.NewEncoder(port)
	code := 0
	say := func(r plan.Result) {
		if r.Error != "" {
			code = 1
		}
		if err := out.Encode(r); err != nil {
			fmt.Println("init: report:", err)
			code = 1
		}
	}
	b, err := os.ReadFile(plan.Path)
	var p plan.Plan
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		say(plan.Result{Name: "plan", Error: err.Error()})
		return code
	}
	modules := loadAll(p.Modules)
	say(modules)
	if modules.Error == "" {
		for _, s := range p.Steps {
			say(run(&s))
		}
	}
	say(plan.Result{Name: plan.End, Seconds: uptime()})
	// What was written reaches the port before the machine ends.
	if err := unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1); err != nil {
		fmt.Println("init: drain the result port:", err)
	}
	return code
}
