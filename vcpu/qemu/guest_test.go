package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test program is three programs: the tests, the launcher of QEMU's jail, and the guest's init.

func TestMain(m *testing.M) {
	JailMain()
	if _, err := os.Stat("/grail-test-guest"); err == nil && os.Getpid() == 1 {
		guestMain()
	}
	os.Exit(m.Run())
}

// guestModules are loaded by the guest's init, in an order that their symbols allow.
var guestModules = []string{"virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net", "pvpanic", "pvpanic-pci", "button", "virtio_balloon"}

// guestMain is the guest's init: it loads modules and does what the agent's channel says, line by line.
func guestMain() {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = os.MkdirAll(m[1], 0o755)
		_ = unix.Mount(m[0], m[1], m[0], 0, "")
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	if err == nil {
		os.Stdout, os.Stderr = console, console
	}
	fmt.Println("INIT")
	// virtio and virtio_ring need each other's symbols in some versions.
	for range 2 {
		for _, name := range guestModules {
			if f, err := os.Open("/modules/" + name + ".ko"); err == nil {
				_ = unix.FinitModule(int(f.Fd()), "", 0)
				f.Close()
			}
		}
	}
	fmt.Println("MODULES")
	port := ""
	for range 200 {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, _ := os.ReadFile(n); strings.TrimSpace(string(b)) == "org.grail.agent" {
				port = "/dev/" + filepath.Base(filepath.Dir(n))
			}
		}
		if port != "" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	f, err := os.OpenFile(port, os.O_RDWR, 0)
	if err != nil {
		fmt.Println("NO AGENT PORT", err)
		select {}
	}
	fmt.Fprintln(f, "ready")
	lines := bufio.NewScanner(f)
	for {
		for lines.Scan() {
			guestCommand(f, lines.Text())
		}
		// The host's end was closed: wait for the next.
		time.Sleep(20 * time.Millisecond)
		lines = bufio.NewScanner(f)
	}
}

func guestCommand(out io.Writer, line string) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "list": // the entries of a directory
		entries, _ := os.ReadDir(rest)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		sort.Strings(names)
		fmt.Fprintln(out, strings.Join(names, " "))
	case "read": // the first bytes of a file
		f, err := os.Open(rest)
		if err != nil {
			fmt.Fprintln(out, err)
			return
		}
		defer f.Close()
		b := make([]byte, 16)
		n, _ := io.ReadFull(f, b)
		fmt.Fprintf(out, "%q\n", b[:n])
	case "use": // so many MiB of memory, for a moment
		n, _ := strconv.Atoi(rest)
		b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			fmt.Fprintln(out, err)
			return
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Fprintln(out, "done", unix.Munmap(b))
	case "slot-off": // releases what is in a PCIe slot
		if err := os.WriteFile("/sys/bus/pci/slots/"+rest+"/power", []byte("0"), 0); err != nil {
			fmt.Fprintln(out, err)
			return
		}
		fmt.Fprintln(out, "done")
	case "poweroff":
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	default:
		fmt.Fprintln(out, "what?")
	}
}
