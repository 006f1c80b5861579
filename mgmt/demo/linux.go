package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/grailos/grail/mgmt/place"
)

// Names in the demo's second part.
const (
	switchName = "net0"
	linuxName  = "work"
)

// sumLine matches a line of sha256sum's.
var sumLine = regexp.MustCompile(`^[0-9a-f]{64}  (\S+)$`)

// lines matches the progress of the guest's program.
var linesDone = regexp.MustCompile(`^words: (\d+) lines$`)

// linux is the demo's second part: a Linux VM builds a program on its root disk and serves the result to the host, while the drivers of
// its disk and its network are crashed.
func (d *demo) linux(ctx context.Context, want string) error {
	if err := d.startLinux(ctx); err != nil {
		return err
	}
	got, err := d.buildThere(ctx)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("the guest's results differ from those of the host.\nGuest:\n%s\nHost:\n%s", got, want)
	}
	d.say("compared", "the compiler's output, the program, its page and its database with those made on the host: all equal")
	if err := d.serve(ctx, want); err != nil {
		return err
	}
	return d.isolated(ctx)
}

// linuxDisk makes the root disk of the Linux VM, and returns it and what the VM's results are to be.
func (d *demo) linuxDisk(ctx context.Context) (path, want string, err error) {
	if err := d.shareImages(); err != nil {
		return "", "", err
	}
	tree, err := d.guestTree(ctx)
	if err != nil {
		return "", "", err
	}
	if want, err = d.buildHere(ctx, tree); err != nil {
		return "", "", err
	}
	begin := time.Now()
	out, err := d.box.Do(ctx, "image", "build", linuxName, "--dir", tree, "--size", "256M")
	if err != nil {
		return "", "", err
	}
	d.say("root disk", "256 MiB with that system, made in %.1f s", time.Since(begin).Seconds())
	return strings.TrimSpace(string(out)), want, nil
}

// startLinux starts the switch and the Linux VM.
func (d *demo) startLinux(ctx context.Context) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	d.url = fmt.Sprintf("http://127.0.0.1:%d/", port)
	args := []string{"driver", "create", "net", switchName, "--port", "work=1", "--port", "other=2", "--uplink", "user"}
	if d.engine != "" {
		args = append(args, "--engine", d.engine)
	}
	begin := time.Now()
	if _, err := d.box.Do(ctx, args...); err != nil {
		return err
	}
	d.say("driver VM", "%s, a switch, ready in %s", switchName, ms(time.Since(begin)))
	begin = time.Now()
	if _, err := d.box.Do(ctx, "create", "--personality", "linux", "--name", linuxName, "--root", driverName+"/root", "--net", switchName+"/work",
		"--publish", fmt.Sprintf("127.0.0.1:%d:80", port)); err != nil {
		return err
	}
	if _, err := d.box.Do(ctx, "start", linuxName); err != nil {
		return err
	}
	version, err := d.box.Do(ctx, "exec", linuxName, "--", "uname", "-sr")
	if err != nil {
		return err
	}
	d.say("Linux VM", "%s, %s, its root disk and network served by %s and %s; answers after %.1f s", linuxName, strings.TrimSpace(string(version)),
		driverName, switchName, time.Since(begin).Seconds())
	return nil
}

// freePort returns a port on which nobody listens now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// buildThere builds and runs the program in the guest, and crashes the driver of its disk while it compiles and while it writes its database.
func (d *demo) buildThere(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := d.box.Command(ctx, append([]string{"exec", linuxName, "--"}, buildCommand...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var all strings.Builder
	crashed := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		text := s.Text()
		fmt.Fprintln(&all, text)
		if d.verbose {
			d.say("", "%s", text)
		}
		step, how := "", ""
		if crashed == 0 && text == "build: compiling" {
			step, how = "while the guest compiles SQLite", "kill"
		} else if m := linesDone.FindStringSubmatch(text); crashed == 1 && m != nil && len(m[1]) >= len("100000") {
			step, how = "after "+m[1]+" lines in the guest's database", "fault"
		}
		if how == "" || err != nil {
			continue
		}
		crashed++
		if err = d.crashLinux(ctx, driverName, how, step); err != nil {
			cancel()
		}
	}
	if end := cmd.Wait(); end != nil && err == nil {
		err = fmt.Errorf("the build in the Linux VM failed: %w: %s", end, strings.TrimSpace(said.String()))
	}
	if err == nil && crashed < 2 {
		err = fmt.Errorf("the build ended after %d of 2 crashes", crashed)
	}
	if err != nil {
		return "", err
	}
	d.say("", "built and run in %.1f s", time.Since(begin).Seconds())
	return sums(all.String()), nil
}

// crashLinux crashes a driver and tells about it.
func (d *demo) crashLinux(ctx context.Context, driver, how, step string) error {
	c, err := d.box.Crash(ctx, driver, how)
	if err != nil {
		return fmt.Errorf("crash of %s: %w", driver, err)
	}
	d.say("crash", "%-5s of %s %s; first request served again after %.0f ms", how, driver, step, c.RecoverMs)
	return nil
}

// serve has the guest serve its results, fetches them, and crashes the switch in the middle.
func (d *demo) serve(ctx context.Context, want string) error {
	if _, err := d.box.Do(ctx, "exec", linuxName, "--", "httpd", "-p", "80", "-h", guestResult+"/site"); err != nil {
		return err
	}
	crashed, requests, bytes := 0, 0, int64(0)
	longest := time.Duration(0)
	for line := range strings.Lines(want) {
		m := sumLine.FindStringSubmatch(strings.TrimSpace(line))
		name, ok := strings.CutPrefix(m[1], "site/")
		if !ok {
			continue
		}
		f := fetch{url: d.url + name}
		if strings.HasSuffix(name, ".db") {
			f.middle = func() error {
				crashed++
				return d.crashLinux(ctx, switchName, "kill", "while the host downloads the database")
			}
		}
		sum, err := f.do(ctx)
		if err != nil {
			return fmt.Errorf("GET %s: %w", f.url, err)
		}
		if !strings.HasPrefix(line, sum) {
			return fmt.Errorf("GET %s: what came has another checksum", f.url)
		}
		requests++
		bytes += f.bytes
		longest = max(longest, f.longest)
	}
	if crashed == 0 {
		return errors.New("the download was too short for a crash")
	}
	d.say("served", "%d files, %d bytes over HTTP to this host, all equal; longest wait for the next bytes %s", requests, bytes, ms(longest))
	return nil
}

// fetch is one download.
type fetch struct {
	url     string
	middle  func() error // is called while it is under way
	bytes   int64
	longest time.Duration // without a byte
}

// stallLimit is how long a download may stand still.
const stallLimit = 20 * time.Second

// do downloads and returns the content's SHA-256 in hexadecimal.
func (f *fetch) do(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(stallLimit, cancel)
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	middle := make(chan error, 1)
	if f.middle == nil {
		middle <- nil
	}
	h := sha256.New()
	buf := make([]byte, 64<<10)
	last := time.Now()
	for {
		n, err := resp.Body.Read(buf)
		stall.Reset(stallLimit)
		f.longest = max(f.longest, time.Since(last))
		last = time.Now()
		h.Write(buf[:n])
		if f.bytes == 0 && f.middle != nil {
			go func() { middle <- f.middle() }()
		}
		f.bytes += int64(n)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), <-middle
		}
		if err != nil {
			return "", err
		}
	}
}

// isolated has a VM of another tenant try to reach the first one.
func (d *demo) isolated(ctx context.Context) error {
	sw, err := d.box.Driver(ctx, switchName)
	if err != nil {
		return err
	}
	to := sw.Ports[0].Address.Addr()
	// That it reaches the gateway shows that it has a network at all.
	script := fmt.Sprintf("ip route | grep -q default && ping -c 1 -W 10 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null && echo on; "+
		"wget -q -T 3 -O - http://%s/ && exit 0; echo refused", to)
	out, err := d.box.Do(ctx, "run", "--rm", "--personality", "linux", "--net", switchName+"/other", "--", "sh", "-c", script)
	if err != nil {
		return err
	}
	if string(out) != "on\nrefused\n" {
		return fmt.Errorf("a VM of another tenant on the same switch: %.200q, want a gateway that answers, and no answer of %s", out, to)
	}
	d.say("isolated", "a Linux VM of another tenant on the same switch reaches the gateway, and not %s", to)
	return nil
}

// shareImages shares what was fetched for Linux VMs between runs of the demo.
func (d *demo) shareImages() error {
	images := place.Dirs{State: filepath.Join(d.dir, "state")}.Images()
	if err := os.MkdirAll(images, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"kernel", "busybox"} {
		shared := filepath.Join(d.cache, name)
		if err := os.MkdirAll(shared, 0o755); err != nil {
			return err
		}
		if err := os.Symlink(shared, filepath.Join(images, name)); err != nil {
			return err
		}
	}
	return nil
}
