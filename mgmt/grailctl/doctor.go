package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/cgroups/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/engine"
	"github.com/grailos/grail/mgmt/fence"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/size"
)

// check is one finding of doctor.
type check struct {
	Name   string `json:"name"`
	Level  string `json:"level"` // ok, weak: works with less, bad: VMs do not run
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func (c *cli) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", GroupID: "host", Short: "Tell what works on this host, and which engine VMs will use", Args: exactly(),
		Long: "doctor looks at the host and explains the choice of the engine. It exits with 125 when VMs cannot run here.",
		RunE: func(*cobra.Command, []string) error {
			checks := diagnose()
			bad := false
			for _, k := range checks {
				bad = bad || k.Level == "bad"
			}
			if c.json {
				if err := c.print(checks); err != nil {
					return err
				}
			} else {
				for _, k := range checks {
					fmt.Fprintf(c.stdout, "%-5s %-12s %s\n", k.Level, k.Name, k.Detail)
					if k.Fix != "" {
						fmt.Fprintf(c.stdout, "%-18s -> %s\n", "", k.Fix)
					}
				}
			}
			if bad {
				return exitCode(125)
			}
			return nil
		},
	}
}

func diagnose() []check {
	return []check{checkHost(), checkKVM(), checkQEMU(), checkNamespaces(), checkCgroups(), checkMemory(), checkHugePages(), checkDirs(), checkPrograms()}
}

func checkHost() check {
	var u unix.Utsname
	_ = unix.Uname(&u)
	k := check{Name: "host", Level: "ok", Detail: fmt.Sprintf("Linux %s, %s, %d processors", unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, runtime.NumCPU())}
	if runtime.GOARCH != "amd64" {
		k.Level, k.Fix = "bad", "native guests run on amd64 hosts only"
	}
	return k
}

func checkKVM() check {
	f, err := engine.KVM()
	if err != nil {
		return check{Name: "engine", Level: "weak", Detail: "process: guests run as jailed host processes, which isolates less than a VM",
			Fix: err.Error()}
	}
	defer f.Close()
	kind := "hardware (" + processorFlag() + ")"
	if processorFlag() == "" {
		kind = "software: no vmx or svm; guest user mode is fast, guest kernel mode is not"
	}
	return check{Name: "engine", Level: "ok", Detail: "kvm, " + kind}
}

// checkQEMU tells what Linux VMs run on.
func checkQEMU() check {
	var have []string
	for _, p := range []string{"qemu-system-x86_64", "qemu-system-aarch64"} {
		if path, err := exec.LookPath(p); err == nil {
			have = append(have, path)
		}
	}
	if len(have) == 0 {
		return check{Name: "linux", Level: "weak", Detail: "no QEMU: Linux VMs do not run here", Fix: "install the package qemu-system-x86"}
	}
	how := "translating, which is slow"
	if processorFlag() != "" {
		how = "on /dev/kvm for guests of this architecture, else translating"
	}
	return check{Name: "linux", Level: "ok", Detail: "Linux VMs run in " + strings.Join(have, ", ") + ", " + how}
}

// processorFlag names the virtualization extension of the processor, if it has one.
func processorFlag() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "flags") {
			continue
		}
		for _, f := range strings.Fields(line) {
			if f == "vmx" || f == "svm" {
				return f
			}
		}
		break
	}
	return ""
}

// checkNamespaces starts a program that does nothing in the namespaces that a VM gets.
func checkNamespaces() check {
	k := check{Name: "namespaces", Level: "ok", Detail: "each VM gets its own mount, PID, network, IPC and UTS namespace"}
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	attr := &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: flags}}
	if os.Geteuid() != 0 {
		attr.Sys.Cloneflags |= unix.CLONE_NEWUSER
		attr.Sys.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.Sys.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
		k.Detail += ", and a user namespace"
	}
	p, err := os.StartProcess("/proc/self/exe", []string{"grailctl", "--help"}, attr)
	if err != nil {
		k.Level, k.Detail = "bad", hv.ErrNamespaces.Error()+": "+err.Error()
		k.Fix = "run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, " +
			"kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces above 0"
		return k
	}
	_, _ = p.Wait()
	return k
}

func checkCgroups() check {
	mode := map[cgroups.CGMode]string{cgroups.Legacy: "v1", cgroups.Hybrid: "v1 with v2 beside it", cgroups.Unified: "v2"}[cgroups.Mode()]
	k := check{Name: "cgroups", Level: "ok", Detail: mode + ": tenants' processor shares, CPU caps, sets of processors and bounds of memory and threads work"}
	f := fence.Open("grail-doctor-" + strconv.Itoa(os.Getpid()))
	var missing, why []string
	for _, c := range []struct {
		fence.Controller
		what string
	}{{fence.CPU, "CPU guarantees and weights"}, {fence.Memory, "memory fences"}, {fence.Threads, "bounds of threads"}, {fence.Set, "--cpuset"}} {
		if err := f.Can(c.Controller); err != nil {
			missing, why = append(missing, c.what), append(why, err.Error())
		}
	}
	if len(missing) > 0 {
		k.Level, k.Detail, k.Fix = "weak", "not enforced: "+strings.Join(missing, ", "), why[0]
	}
	return k
}

func checkMemory() check {
	k := check{Name: "memory", Level: "ok"}
	avail := meminfo("MemAvailable")
	k.Detail = fmt.Sprintf("%d MiB available", avail>>20)
	if avail < 512<<20 {
		k.Level, k.Fix = "weak", "less than 512M is free: VMs may be ended by the host"
	}
	return k
}

// meminfo returns a field of /proc/meminfo in bytes.
func meminfo(name string) uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

func checkHugePages() check {
	k := check{Name: "huge pages", Level: "ok"}
	setting := func(file string) string {
		b, _ := os.ReadFile("/sys/kernel/mm/transparent_hugepage/" + file)
		_, s, _ := strings.Cut(string(b), "[")
		s, _, _ = strings.Cut(s, "]")
		return s
	}
	anon, shmem := setting("enabled"), setting("shmem_enabled")
	k.Detail = fmt.Sprintf("transparent: %s, in shared memory: %s", dash(anon), dash(shmem))
	if anon == "" || anon == "never" {
		k.Level, k.Fix = "weak", "guest memory uses 4K pages, which slows large copies; echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
	}
	return k
}

func checkDirs() check {
	k := check{Name: "state", Level: "ok"}
	dirs, err := place.Default()
	if err == nil {
		err = dirs.Make()
	}
	if err != nil {
		k.Level, k.Detail = "bad", err.Error()
		return k
	}
	k.Detail = dirs.State
	var st unix.Statfs_t
	if unix.Statfs(dirs.State, &st) == nil {
		free := st.Bavail * uint64(st.Bsize)
		k.Detail += fmt.Sprintf(", %s free", size.Format(free>>30<<30))
	}
	return k
}

func checkPrograms() check {
	k := check{Name: "programs", Level: "ok"}
	var missing []string
	for _, p := range []string{"grailvm", "graild", "grailport", "graillinux", "drivers/blk"} {
		if path, err := place.Program(p); err != nil {
			missing = append(missing, p)
		} else if p == "grailvm" {
			k.Detail = "beside " + path
		}
	}
	if len(missing) > 0 {
		k.Level, k.Detail, k.Fix = "bad", "missing: "+strings.Join(missing, ", "), "run make build, or set GRAIL_LIBEXEC to the folder that holds them"
	}
	return k
}
