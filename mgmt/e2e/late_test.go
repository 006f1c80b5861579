package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grailos/grail/mgmt/api"
)

// Constants of testdata/latewriter.
const (
	lateMark  = 4096
	lateChunk = 1 << 20
)

// written is what an instance of latewriter left at a place: its number and its count.
type written struct{ instance, count uint64 }

// look reads the marks in the first bytes of a file.
func look(t *testing.T, path string, bytes int) map[int]written {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, bytes)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	m := map[int]written{}
	for at := 0; at < bytes; at += lateMark {
		m[at] = written{binary.LittleEndian.Uint64(b[at:]), binary.LittleEndian.Uint64(b[at+8:])}
	}
	return m
}

// only returns the marks of one instance, or of all others.
func only(m map[int]written, instance uint64, is bool) map[int]written {
	out := map[int]written{}
	for at, w := range m {
		if w.instance != 0 && (w.instance == instance) == is {
			out[at] = w
		}
	}
	return out
}

// A dead instance's writes are over before its successor has its clients: a driver that does nothing but write, to its device and to its client's memory,
// on several threads, is killed again and again, and once the successor has begun to write, nothing more comes of the dead one.
func TestNoLateWrite(t *testing.T) {
	const size = 8 << 20
	program := buildProgram(t, "mgmt/e2e/testdata/latewriter", "")
	onEngines(t, func(r *rig) {
		disk := r.disk(size)
		r.ctl("driver", "create", "blk", "blk0", "--engine", string(r.engine), "--disk", "d="+disk)
		r.ctl("driver", "upgrade", "blk0", "--program", program)
		r.ctl("create", "--name", "idle", "--engine", string(r.engine), "--disk", "blk0/d", "--", filepath.Join(r.dir, "guest"), "signal")
		r.ctl("start", "idle")
		memory := r.grant()
		places := map[string]int{disk: size, memory: lateChunk}
		last := uint64(0)
		for round := range 4 {
			// Everywhere is something of this instance.
			var now uint64
			r.eventually("the instance writes", func() bool {
				now = look(t, memory, lateMark)[0].instance
				return now != 0 && now != last && len(only(look(t, disk, size), now, true)) > 0
			})
			if _, err := r.client.CrashDriver(context.Background(), "blk0", "kill"); err != nil {
				t.Fatal(err)
			}
			// From the first sign of the successor on, its predecessor's marks may vanish, and none may appear.
			r.eventually("its successor writes", func() bool { return look(t, memory, lateMark)[0].instance != now })
			left := map[string]map[int]written{}
			for path, n := range places {
				left[path] = only(look(t, path, n), now, true)
			}
			next := look(t, memory, lateMark)[0]
			r.eventually("its successor goes on writing", func() bool {
				file := only(look(t, disk, size), next.instance, true)
				return look(t, memory, lateMark)[0].count > next.count+20 && len(file) > size/lateMark/2
			})
			for path, n := range places {
				for at, w := range only(look(t, path, n), now, true) {
					if left[path][at] != w {
						t.Errorf("round %d: the dead instance wrote %+v at %d of %s after its successor had begun; there was %+v", round, w, at, path, left[path][at])
					}
				}
			}
			last = now
			r.eventually("ready", func() bool { return r.driver("blk0").State == api.Ready })
		}
		r.ctl("rm", "-f", "idle")
	})
}

// grant returns a path to the buffers that the one client of the one driver shares with it, as graild has them: to them alone is a descriptor of that
// name open in graild.
func (r *rig) grant() string {
	r.t.Helper()
	v, err := r.client.Version(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	dir := fmt.Sprintf("/proc/%d/fd", v.PID)
	fds, err := os.ReadDir(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, fd := range fds {
		path := filepath.Join(dir, fd.Name())
		if to, err := os.Readlink(path); err == nil && strings.Contains(to, "memfd:grail-grant") {
			return path
		}
	}
	r.t.Fatal("graild holds no grant")
	return ""
}
