package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/size"
	"github.com/grailos/grail/personalities/native"
)

// vmFlags are the flags that describe a personality VM.
type vmFlags struct {
	name, personality, engine, memory, files, dir, arch, root, image string
	cpu                                                              float64
	disks, nets, env, publish                                        []string
	boot                                                             time.Duration
	tenant                                                           string
	share                                                            shareFlags
}

func (f *vmFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the VM (default: made up)")
	fl.StringVar(&f.personality, "personality", "native", "kind of guest: native, a static Linux program; or linux, a Linux system in which PROGRAM is run")
	fl.StringVar(&f.engine, "engine", "", "what executes the guest: kvm or process (default: kvm where it works); a Linux VM has qemu")
	fl.StringVar(&f.arch, "arch", "", "architecture of a Linux VM: amd64 or arm64 (default: this host's)")
	fl.Float64Var(&f.cpu, "cpu", 0, "cap on processor use in cores, for instance 0.5 (default: none)")
	fl.StringVar(&f.memory, "memory", "256M", "guest memory: a multiple of 2M, at least 16M; 128M for a Linux VM")
	fl.StringVar(&f.share.memory, "memory-limit", "", "how much of its memory it may use; it can be changed while the VM runs (default: all)")
	fl.StringArrayVar(&f.disks, "disk", nil, "give the VM a disk of a driver VM: DRIVER/DISK, or DRIVER/DISK:ro to only read it (repeatable)")
	fl.StringArrayVar(&f.nets, "net", nil, "plug the VM into a port of a net driver: DRIVER/PORT (repeatable)")
	fl.StringArrayVar(&f.publish, "publish", nil, "make a port of the VM reachable at one of the host's while it runs: [IP:]HOSTPORT:PORT[/udp]; the IP is 127.0.0.1 unless given; the first --net needs a driver with an uplink (repeatable)")
	fl.StringVar(&f.root, "root", "", "the disk with the system of a Linux VM: DRIVER/DISK, or DRIVER/DISK:ro for changes in memory only (default: busybox, in memory)")
	fl.StringVar(&f.image, "image", "", "an image of grailctl image build as the system of a Linux VM: IMAGE, with changes in memory, or IMAGE:rw, with a copy for the VM alone")
	fl.DurationVar(&f.boot, "boot-timeout", 0, "how long a Linux VM may take to boot (default 5m)")
	fl.StringVar(&f.files, "files", "", "directory whose content becomes the guest's read-only file system")
	fl.StringVarP(&f.dir, "workdir", "w", "", "directory of the guest's file system in which the program starts (default: /)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set a variable in the guest: NAME=value, or NAME to pass on its value here (repeatable)")
	fl.StringVar(&f.tenant, "tenant", "", "the tenant that the VM belongs to, such as acme or acme/web (default: none but the host)")
	f.share.addVM(cmd)
	f.share.addRealTime(cmd)
	_ = cmd.RegisterFlagCompletionFunc("tenant", completeTenants)
	completeDevices(cmd)
	completeImages(cmd)
	// What follows the program is the program's.
	fl.SetInterspersed(false)
}

// program checks the arguments: a native VM needs a program.
func (f *vmFlags) program(cmd *cobra.Command, args []string) error {
	if f.personality == api.Linux {
		return nil
	}
	return atLeastOne("a PROGRAM")(cmd, args)
}

// config makes a VM's configuration from flags and arguments, and opens the program.
func (f *vmFlags) config(args []string) (api.VMConfig, *os.File, error) {
	cfg := api.VMConfig{Name: f.name, Personality: f.personality, Engine: hv.Engine(f.engine), CPU: f.cpu, Tenant: f.tenant}
	var err error
	if cfg.Share, err = f.share.share(); err != nil {
		return cfg, nil, err
	}
	cfg.MemoryLimit, cfg.Share.Memory.Limit = uint64(cfg.Share.Memory.Limit), 0
	if len(args) > 0 {
		cfg.Program, cfg.Args = args[0], args[1:]
	}
	switch cfg.Personality {
	case api.Native:
		switch cfg.Engine {
		case "", hv.EngineKVM, hv.EngineProcess:
		default:
			return cfg, nil, fmt.Errorf("there is no engine %q for native VMs; use kvm or process", f.engine)
		}
		if f.arch != "" {
			return cfg, nil, errors.New("--arch is for Linux VMs; a native program has the host's architecture")
		}
		if f.image != "" || f.boot != 0 {
			return cfg, nil, errors.New("--image and --boot-timeout are for Linux VMs; a native program brings all that it needs")
		}
		if f.root != "" {
			return cfg, nil, errors.New("--root is for Linux VMs; a native program gets its files by --files")
		}
	case api.Linux:
		cfg.Arch = f.arch
		if f.root != "" {
			ref, err := parseDiskRef("--root", f.root)
			if err != nil {
				return cfg, nil, err
			}
			cfg.Root = &ref
		}
		if f.boot < 0 || f.boot > 0 && f.boot < time.Millisecond {
			return cfg, nil, fmt.Errorf("--boot-timeout %v is too short; give 1ms or more", f.boot)
		}
		cfg.BootMs = f.boot.Milliseconds()
		if f.image != "" {
			if err := f.fromImage(&cfg); err != nil {
				return cfg, nil, err
			}
		}
	default:
		return cfg, nil, fmt.Errorf("there is no personality %q; use native or linux", cfg.Personality)
	}
	if err := api.CheckCPU(f.cpu); err != nil {
		return cfg, nil, fmt.Errorf("--cpu: %w", err)
	}
	if cfg.Name == "" {
		cfg.Name = madeUpName(cfg.Personality)
	}
	if cfg.MemoryBytes, err = size.Parse(f.memory); err != nil {
		return cfg, nil, fmt.Errorf("--memory: %w", err)
	}
	least := uint64(api.MinMemory)
	if cfg.Personality == api.Linux {
		least = api.MinLinuxMemory
	}
	if err := api.CheckMemory(cfg.MemoryBytes, least); err != nil {
		return cfg, nil, fmt.Errorf("--memory %s: %w", f.memory, err)
	}
	for _, s := range f.disks {
		ref, err := parseDiskRef("--disk", s)
		if err != nil {
			return cfg, nil, err
		}
		cfg.Disks = append(cfg.Disks, ref)
	}
	for _, s := range f.nets {
		ref, err := parseNetRef(s)
		if err != nil {
			return cfg, nil, err
		}
		cfg.Nets = append(cfg.Nets, ref)
	}
	for _, s := range f.publish {
		p, err := api.ParsePublish(s)
		if err != nil {
			return cfg, nil, fmt.Errorf("--publish %w", err)
		}
		cfg.Publish = append(cfg.Publish, p)
	}
	if err := api.CheckPublish(&cfg); err != nil {
		return cfg, nil, fmt.Errorf("--publish: %w", err)
	}
	for _, s := range f.env {
		name, _, ok := strings.Cut(s, "=")
		if name == "" {
			return cfg, nil, fmt.Errorf("--env %q has no name; use NAME=value", s)
		}
		if !ok {
			value, set := os.LookupEnv(s)
			if !set {
				return cfg, nil, fmt.Errorf("--env %s: that variable is not set here; use %s=value", s, s)
			}
			s = name + "=" + value
		}
		cfg.Env = append(cfg.Env, s)
	}
	if f.files != "" {
		if cfg.Files, err = filepath.Abs(f.files); err != nil {
			return cfg, nil, err
		}
		if err := checkFiles(cfg.Files); err != nil {
			return cfg, nil, err
		}
	}
	if f.dir != "" && !path.IsAbs(f.dir) {
		return cfg, nil, fmt.Errorf("--workdir %s is relative; give a path of the guest's file system that begins with /", f.dir)
	}
	if f.dir != "" {
		cfg.Dir = f.dir
	}
	if cfg.Personality == api.Linux {
		return cfg, nil, api.CheckLinux(&cfg)
	}
	if cfg.Program, err = filepath.Abs(args[0]); err != nil {
		return cfg, nil, err
	}
	program, err := openProgram(args[0])
	return cfg, program, err
}

// parseDiskRef reads DRIVER/DISK[:ro].
func parseDiskRef(flag, s string) (api.DiskRef, error) {
	rest, ro := strings.CutSuffix(s, ":ro")
	driver, disk, ok := strings.Cut(rest, "/")
	if !ok || driver == "" || disk == "" || strings.ContainsAny(disk, "/:") {
		return api.DiskRef{}, fmt.Errorf("%s %q is not of the form DRIVER/DISK or DRIVER/DISK:ro; grailctl driver ls lists what there is", flag, s)
	}
	return api.DiskRef{Driver: driver, Disk: disk, ReadOnly: ro}, nil
}

func checkFiles(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--files %s does not exist; give a directory whose content the guest is to see", dir)
	case err != nil:
		return fmt.Errorf("--files: %w", err)
	case !st.IsDir():
		return fmt.Errorf("--files %s is not a directory; give a directory whose content the guest is to see", dir)
	}
	return nil
}

// openProgram opens a program that can run as a guest.
func openProgram(path string) (*os.File, error) {
	f, err := native.CheckPath(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, notFound{fmt.Errorf("program %s does not exist; give the path of a static Linux program on this host", path)}
	}
	return f, err
}

// slowPack is after how long packing shows that it is at work.
const slowPack = 2 * time.Second

// pack returns the files of a directory as an archive that has no name, or nil for no directory.
func (c *cli) pack(ctx context.Context, dir string) (*os.File, error) {
	if dir == "" {
		return nil, nil
	}
	f, err := os.CreateTemp("", "grail-files-")
	if err != nil {
		return nil, fmt.Errorf("--files: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("--files: %w", err)
	}
	began, shown := time.Now(), time.Now()
	_, err = native.Pack(ctx, dir, f, func(files int, bytes int64) {
		if time.Since(began) >= slowPack && time.Since(shown) >= slowPack/4 {
			shown = time.Now()
			fmt.Fprintf(c.stderr, "grailctl: packing %s: %d files, %d MiB\n", dir, files, bytes>>20)
		}
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("--files: %w", err)
	}
	return f, nil
}

// madeUpName returns a name that hardly anybody has.
func madeUpName(personality string) string {
	return personality + "-" + strings.ToLower(rand.Text()[:6])
}
