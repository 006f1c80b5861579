package qemu

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// listening returns the path of a socket.
func listening(t *testing.T) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path
}

func good(t *testing.T) Config {
	s := listening(t)
	return Config{
		Name: "web", Dir: "/vm", Arch: AMD64, Kernel: "/vmlinuz", Cmdline: "quiet", CPUs: 2, Memory: 256 << 20,
		Disks: []Disk{{ID: "root", Socket: s}},
		NICs:  []NIC{{ID: "eth0", Socket: s, MAC: "52:54:00:12:34:56", Queues: 2, MTU: 1400}},
	}
}

func TestConfigCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*Config)
		want string // "": nothing is wrong
	}{
		{"good", func(c *Config) {}, ""},
		{"no name", func(c *Config) { c.Name = "" }, "name"},
		{"name with options", func(c *Config) { c.Name = "a,debug-threads=on" }, "name"},
		{"name of 64", func(c *Config) { c.Name = strings.Repeat("a", 64) }, ""},
		{"name of 65", func(c *Config) { c.Name = strings.Repeat("a", 65) }, "name"},
		{"no kernel", func(c *Config) { c.Kernel = "" }, "Kernel"},
		{"other architecture", func(c *Config) { c.Arch = "ia64" }, "architecture"},
		{"KVM for another architecture", func(c *Config) { c.Accel, c.Arch = KVM, map[bool]Arch{true: ARM64, false: AMD64}[hostArch == AMD64] }, "kvm"},
		{"unknown accelerator", func(c *Config) { c.Accel = "xen" }, "accelerator"},
		{"machine of another architecture", func(c *Config) { c.Machine = Virt }, "machine"},
		{"unknown machine", func(c *Config) { c.Machine = "isapc" }, "machine"},
		{"most CPUs", func(c *Config) { c.CPUs = MaxCPUs }, ""},
		{"too many CPUs", func(c *Config) { c.CPUs = MaxCPUs + 1 }, "CPUs"},
		{"negative CPUs", func(c *Config) { c.CPUs = -1 }, "CPUs"},
		{"least memory", func(c *Config) { c.Memory = MinMemory }, ""},
		{"too little memory", func(c *Config) { c.Memory = MinMemory - 1<<20 }, "memory"},
		{"odd memory", func(c *Config) { c.Memory = MinMemory + 4096 }, "memory"},
		{"too much memory", func(c *Config) { c.Memory = MaxMemory + 1<<20 }, "memory"},
		{"two lines", func(c *Config) { c.Cmdline = "a\nb" }, "command line"},
		{"long line", func(c *Config) { c.Cmdline = strings.Repeat("a", maxCmdline) }, "command line"},
		{"twins", func(c *Config) { c.NICs[0].ID = "root" }, "two devices"},
		{"twin disks", func(c *Config) { c.Disks = append(c.Disks, c.Disks[0]) }, "two devices"},
		{"disk with options", func(c *Config) { c.Disks[0].ID = "a,b" }, "disk"},
		{"disk that leaves the directory", func(c *Config) { c.Disks[0].ID = "../x" }, "disk"},
		{"disk without a server", func(c *Config) { c.Disks[0].Socket = "/nonexistent" }, "no such file"},
		{"disk on a directory", func(c *Config) { c.Disks[0].Socket = "/" }, "not a socket"},
		{"disk with too many queues", func(c *Config) { c.Disks[0].Queues = MaxQueues + 1 }, "queues"},
		{"all the devices", func(c *Config) { c.FreeSlots = MaxDevices - 2 }, ""},
		{"too many devices", func(c *Config) { c.FreeSlots = MaxDevices - 1 }, "slots"},
		{"multicast address", func(c *Config) { c.NICs[0].MAC = "01:00:5e:00:00:01" }, "unicast"},
		{"long address", func(c *Config) { c.NICs[0].MAC = "52:54:00:12:34:56:78:9a" }, "unicast"},
		{"no address", func(c *Config) { c.NICs[0].MAC = "" }, "unicast"},
		{"least MTU", func(c *Config) { c.NICs[0].MTU = 68 }, ""},
		{"tiny MTU", func(c *Config) { c.NICs[0].MTU = 67 }, "MTU"},
		{"huge MTU", func(c *Config) { c.NICs[0].MTU = 65536 }, "MTU"},
		{"channel with options", func(c *Config) { c.Channels = []Channel{{Name: "a,b"}} }, "channel"},
		{"twin channels", func(c *Config) { c.Channels = []Channel{{Name: "a"}, {Name: "a"}} }, "channel"},
		{"two ends", func(c *Config) { c.Channels = []Channel{{"a", Stream{Listen: os.Stdin, Conn: os.Stdin}}} }, "both"},
		{"unknown console", func(c *Config) { c.Console.Kind = "vga" }, "console"},
		{"negative limit", func(c *Config) { c.Jail.FileBytes = -1 }, "negative"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good(t)
			c.set(&cfg)
			err := cfg.check()
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%v, want no error", err)
			case c.want != "" && !errors.Is(err, ErrConfig):
				t.Errorf("%v, want ErrConfig", err)
			case c.want != "" && !strings.Contains(err.Error(), c.want):
				t.Errorf("%v, want a word about %s", err, c.want)
			}
		})
	}
}

func TestMachineChoice(t *testing.T) {
	for _, c := range []struct {
		arch  Arch
		accel Accel
		khz   uint64
		want  Machine
	}{
		{AMD64, KVM, 0, MicroVM}, {AMD64, TCG, 2_000_000, MicroVM}, {AMD64, TCG, 0, Q35}, {ARM64, TCG, 0, Virt}, {ARM64, KVM, 0, Virt},
	} {
		if got := choose(c.arch, c.accel, c.khz); got != c.want {
			t.Errorf("%s %s %d kHz: %s, want %s", c.arch, c.accel, c.khz, got, c.want)
		}
	}
}

// planned returns the command line for a Config.
func planned(t *testing.T, accel Accel, machine Machine, set func(*Config)) (*plan, []string) {
	t.Helper()
	c := good(t)
	if machine == Virt {
		c.Arch = ARM64
	}
	if set != nil {
		set(&c)
	}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	p := &plan{Config: &c, accel: accel, machine: machine, tscKHz: 2_500_000, fds: fdNumbers{3, 4, 0, 5}}
	p.files = make([]*os.File, 3)
	for i := range p.files {
		p.files[i] = new(os.File)
	}
	return p, p.argv()
}

func TestCommandLine(t *testing.T) {
	a, b := new(os.File), new(os.File)
	for _, c := range []struct {
		name    string
		accel   Accel
		machine Machine
		set     func(*Config)
		want    []string // option and value, somewhere
		not     []string // part of no word
	}{
		{"microvm under TCG", TCG, MicroVM, nil, []string{
			"-accel tcg,tb-size=128", "-cpu max", "-smp 2", "-m size=256M", "-kernel /proc/self/fd/4", "-S ",
			"-machine microvm,memory-backend=ram0,pcie=on,acpi=on,rtc=on,usb=off,isa-serial=off",
			"-object memory-backend-file,id=ram0,mem-path=/proc/self/fd/5,size=268435456,share=on",
			"-append quiet pcie_ports=native tsc_early_khz=2500000", "-chroot /empty",
			"-action reboot=shutdown,shutdown=pause,panic=pause",
			"-chardev socket,id=c-root,path=/run/root,reconnect=1",
			"-device vhost-user-blk-pci,id=d-root,bus=slot0,chardev=c-root,num-queues=1,queue-size=256,disable-legacy=on",
			"-netdev vhost-user,id=n-eth0,chardev=c-eth0,queues=2",
			"-device virtio-net-pci,id=d-eth0,bus=slot1,netdev=n-eth0,mac=52:54:00:12:34:56,disable-legacy=on,romfile=,mq=on,vectors=0,host_mtu=1400",
			"-device pcie-root-port,id=slot5,chassis=6,slot=6", "-device pvpanic-pci",
		}, []string{"slot6", "virtio-serial", "-initrd"}},
		{"microvm with KVM", KVM, MicroVM, nil, []string{"-accel kvm", "-cpu host", "-append quiet pcie_ports=native",
			"-device virtio-net-pci,id=d-eth0,bus=slot1,netdev=n-eth0,mac=52:54:00:12:34:56,disable-legacy=on,romfile=,mq=on,vectors=6,host_mtu=1400"}, []string{"tsc_early"}},
		{"own words", TCG, MicroVM, func(c *Config) { c.Cmdline = "pcie_ports=compat tsc_early_khz=1" },
			[]string{"-append pcie_ports=compat tsc_early_khz=1"}, []string{"native"}},
		{"q35", TCG, Q35, nil, []string{"-append quiet", "-machine q35,memory-backend=ram0,usb=off,vmport=off,smbus=off,sata=off"}, []string{"tsc_early", "native"}},
		{"arm64", TCG, Virt, nil, []string{"-cpu neoverse-n1", "-machine virt,memory-backend=ram0,gic-version=3", "-append quiet"}, []string{"tsc_early"}},
		{"no jail", TCG, Q35, func(c *Config) { c.Jail.Off = true }, []string{"-chardev socket,id=c-root,path=/vm/run/root,reconnect=1",
			"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}, []string{"-chroot", "-runas"}},
		{"directory with a comma", TCG, Q35, func(c *Config) { c.Jail.Off, c.Dir = true, "/v,m" },
			[]string{"-chardev socket,id=c-root,path=/v,,m/run/root,reconnect=1"}, nil},
		{"consoles", TCG, MicroVM, func(c *Config) {
			c.Console = Console{VirtioConsole, Stream{Conn: a, Log: b}}
			c.Channels = []Channel{{"org.grail.agent", Stream{Listen: a}}, {"log", Stream{}}}
		}, []string{"-chardev socket,id=console,fd=6,logfile=/proc/self/fd/7,logappend=on", "-device virtconsole,chardev=console,nr=0",
			"-chardev socket,id=channel0,fd=6,server=on,wait=off", "-device virtserialport,chardev=channel0,name=org.grail.agent,nr=1",
			"-chardev null,id=channel1"}, []string{"chardev:console"}},
		{"serial", TCG, MicroVM, func(c *Config) { c.Console = Console{SerialConsole, Stream{}} },
			[]string{"-serial chardev:console", "-machine microvm,memory-backend=ram0,pcie=on,acpi=on,rtc=on,usb=off,isa-serial=on"}, []string{"virtio-serial"}},
		{"extra", TCG, MicroVM, func(c *Config) { c.Extra = []string{"-trace", "x"} }, []string{"-trace x"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, args := planned(t, c.accel, c.machine, c.set)
			for _, w := range c.want {
				opt, val, _ := strings.Cut(w, " ")
				ok := false
				for i, have := range args {
					if have == opt && (val == "" || i+1 < len(args) && args[i+1] == val) {
						ok = true
					}
				}
				if !ok {
					t.Errorf("no %s in %q", w, args)
				}
			}
			for _, n := range c.not {
				if i := slices.IndexFunc(args, func(a string) bool { return strings.Contains(a, n) }); i >= 0 {
					t.Errorf("%s in %s", n, args[i])
				}
			}
		})
	}
}

func TestReadOnlyList(t *testing.T) {
	if got := readOnly(nil, "/usr/bin/qemu"); slices.Contains(got, "/usr/bin/qemu") || !slices.Contains(got, "/usr") {
		t.Errorf("%v", got)
	}
	if got := readOnly([]string{"/lib"}, "/libq/qemu"); !slices.Equal(got, []string{"/lib", "/libq/qemu"}) {
		t.Errorf("%v", got)
	}
}

func TestInitrd(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for i, s := range []string{"abcde", "fgh"} {
		p := filepath.Join(dir, string(rune('0'+i)))
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	f, err := initrd(paths)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 64)
	n, _ := f.ReadAt(b, 0)
	if got := string(b[:n]); got != "abcde\x00\x00\x00fgh\x00" {
		t.Errorf("%q", got)
	}
	if _, err := initrd([]string{dir}); err == nil {
		t.Error("a directory passed for an initrd")
	}
	if _, err := initrd([]string{paths[0], filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing initrd: %v", err)
	}
}

func TestHostTSC(t *testing.T) {
	if hostArch != AMD64 {
		t.Skip("SKIPPED: the host has no TSC")
	}
	if khz := hostTSC(); khz < 100_000 || khz > 10_000_000 {
		t.Errorf("%d kHz", khz)
	} else {
		t.Logf("%d kHz", khz)
	}
}

func TestMapped(t *testing.T) {
	for _, c := range []struct {
		uidMap string
		uid    int
		want   bool
	}{
		{"         0          0 4294967295\n", 65534, true},
		{"         0       1000          1\n", 65534, false},
		{"         0       1000          1\n         1     100000      65536\n", 65534, true},
		{"         0       1000          1\n         1     100000      65533\n", 65534, false},
		{"", 0, false},
		{"x y z\n", 0, false},
	} {
		if got := mapped(c.uidMap, c.uid); got != c.want {
			t.Errorf("%q has %d: %v", c.uidMap, c.uid, got)
		}
	}
}
