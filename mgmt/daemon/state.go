package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/hv/state"
	"github.com/grailos/grail/mgmt/api"
)

// Times of a driver's state.
const (
	stateLook = time.Second      // between two looks at the region of a driver that works
	stateSave = 10 * time.Second // between two writes of the copy to disk, at least
	young     = 2 * time.Second  // an instance that dies of itself so soon may have died of its state
	mistrust  = 2                // such deaths in a row, after which the next one starts without
)

// stateSizes are the sizes of state regions in bytes, by the driver's type.
var stateSizes = map[string]uint64{typeNet: 512 << 10, typeBlk: 64 << 10}

// keepState is the name of the region among the descriptors that a driver's grailvm keeps for the next graild.
const keepState = "state"

// stateCopy is the monitor's copy of a driver's state. Each instance has a region of its own, which nobody else writes to: so neither a spare nor the last
// writes of an instance that is dying can harm what the next one is given, and a region that was corrupted is not all there is.
type stateCopy struct {
	mu     sync.Mutex
	copy   []byte // nil: none yet
	info   state.Info
	at     time.Time // of the last change that was seen
	saved  time.Time
	dirty  bool // changed since it was saved
	loaded bool // the file was looked for
	beat   uint64
	deaths int // in a row, soon after the state was given
}

// newState makes an instance's region and has it launched with it.
func (i *driverInstance) newState(l *hv.Launch, driverType string) (err error) {
	size := stateSizes[driverType]
	if size == 0 {
		return nil
	}
	if i.state, err = hv.NewMemory("grail-state", size); err != nil {
		return err
	}
	l.Spec.Caps = append(l.Spec.Caps, hv.CapSpec{Kind: abi.CapState, Name: "state", Rights: abi.RightRead | abi.RightWrite, FD: l.Add(i.state), Size: size})
	l.Spec.Attachments = append(l.Spec.Attachments, hv.Attachment{Disk: keepState, Log: -1, Regions: []hv.AttachMem{{FD: l.Add(i.state), Size: size}}})
	return nil
}

// readRegion returns a copy of a region. Only what was ever written to costs anything.
func readRegion(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	for at := int64(0); at < st.Size(); {
		from, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, err
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		to = min(max(to, from), st.Size())
		if _, err := f.ReadAt(b[from:to], from); err != nil {
			return nil, err
		}
		at = to
	}
	return b, nil
}

// writeRegion fills a region that was never written to.
func writeRegion(f *os.File, b []byte) error {
	const page = 4096
	empty := [page]byte{}
	for at := 0; at < len(b); at += page {
		p := b[at:min(at+page, len(b))]
		if string(p) == string(empty[:len(p)]) {
			continue
		}
		if _, err := f.WriteAt(p, int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// lookAtState copies the instance's state, unless that says less than the copy that there is: then it was corrupted, or never given to it.
func (dr *driver) lookAtState(inst *driverInstance) {
	if inst.state == nil {
		return
	}
	b, err := readRegion(inst.state)
	if err != nil {
		dr.d.log.Warn("state", "driver", dr.name(), "error", err)
		return
	}
	info := state.Inspect(b)
	k := &dr.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	if info.Generation == 0 || k.info.Newer(info) {
		return
	}
	k.copy, k.info, k.at, k.dirty = b, info, time.Now(), true
}

// watchState looks at the state of an instance that works, and saves it now and then.
func (dr *driver) watchState(inst *driverInstance, quit <-chan struct{}) {
	for range inst.looks(stateLook, quit, nil) {
		beat := inst.beat()
		k := &dr.kept
		k.mu.Lock()
		idle, due := beat == k.beat, k.dirty && time.Since(k.saved) >= stateSave
		k.beat = beat
		k.mu.Unlock()
		if !idle {
			dr.lookAtState(inst)
		}
		if due {
			dr.saveState()
		}
	}
}

// giveState gives an instance that serves nobody yet the state to start from. It returns what that is, or nil when there is none.
func (dr *driver) giveState(inst *driverInstance) *api.DriverState {
	if inst.state == nil {
		return nil
	}
	dr.loadState()
	k := &dr.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	k.beat = 0
	if st, err := inst.state.Stat(); err != nil || k.copy == nil || int64(len(k.copy)) != st.Size() {
		return nil // or its program was another size's
	}
	if err := writeRegion(inst.state, k.copy); err != nil {
		dr.d.log.Error("state: the next instance starts without", "driver", dr.name(), "error", err)
		return nil
	}
	return k.view()
}

// stateDied notes how an instance died. When several in a row die soon after they were given the state, it may be what they die of: the next one starts
// without.
func (dr *driver) stateDied(lived time.Duration, injected bool) {
	k := &dr.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	if injected || lived >= young || k.copy == nil {
		k.deaths = 0
		return
	}
	if k.deaths++; k.deaths >= mistrust {
		dr.d.log.Warn("state dropped, since instances keep dying soon after they were given it", "driver", dr.name(), "records", k.info.Items+k.info.Records)
		k.copy, k.info, k.dirty, k.deaths = nil, state.Info{}, false, 0
		_ = os.Remove(dr.statePath())
	}
}

// statePath is where the copy is saved, for when driver and graild end at the same time, as with the host.
func (dr *driver) statePath() string { return filepath.Join(dr.d.dirs.VM(dr.name()), "state") }

func (dr *driver) saveState() {
	k := &dr.kept
	k.mu.Lock()
	b := k.copy
	if !k.dirty {
		b = nil
	}
	k.dirty, k.saved = false, time.Now()
	k.mu.Unlock()
	if b == nil {
		return
	}
	temp := dr.statePath() + ".new"
	err := os.WriteFile(temp, b, 0o600)
	if err == nil {
		err = os.Rename(temp, dr.statePath())
	}
	if err != nil {
		dr.d.log.Warn("state not saved", "driver", dr.name(), "error", err)
	}
}

// loadState reads the saved copy, if there is no better one.
func (dr *driver) loadState() {
	k := &dr.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.loaded || k.copy != nil {
		return
	}
	k.loaded = true
	b, err := os.ReadFile(dr.statePath())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			dr.d.log.Warn("state not read", "driver", dr.name(), "error", err)
		}
		return
	}
	if info := state.Inspect(b); info.Generation != 0 {
		k.copy, k.info = b, info
		if st, err := os.Stat(dr.statePath()); err == nil {
			k.at = st.ModTime()
		}
	}
}

// view describes the copy. The caller holds k.mu.
func (k *stateCopy) view() *api.DriverState {
	return &api.DriverState{Size: len(k.copy), Version: k.info.Version, Generation: k.info.Generation, Sequence: k.info.Sequence,
		Checkpoints: k.info.Checkpoints, Items: k.info.Items, Records: k.info.Records, Bytes: k.info.Bytes, Changed: k.at, Saved: k.saved}
}

// keptView describes the copy, or returns nil when there is none.
func (dr *driver) keptView() *api.DriverState {
	dr.kept.mu.Lock()
	defer dr.kept.mu.Unlock()
	if dr.kept.copy == nil {
		return nil
	}
	return dr.kept.view()
}

// stateless reports whether the instance has not written to its region yet.
func (i *driverInstance) stateless() bool {
	if i.state == nil {
		return true
	}
	b, err := readRegion(i.state)
	return err == nil && state.Inspect(b).Generation == 0
}

// DriverState describes the state that the driver keeps for its next instance, as it is now.
func (d *Daemon) DriverState(name string) (s api.DriverState, err error) {
	dr, err := d.driver(name)
	if err != nil {
		return s, err
	}
	dr.mu.Lock()
	inst, ready := dr.inst, dr.state == api.Ready
	dr.mu.Unlock()
	if stateSizes[dr.rec.Config.Type] == 0 {
		return s, api.Errorf(api.Invalid, "driver %s keeps no state: a %s driver has none worth keeping", name, dr.rec.Config.Type)
	}
	if ready {
		dr.lookAtState(inst)
	} else {
		dr.loadState()
	}
	dr.kept.mu.Lock()
	defer dr.kept.mu.Unlock()
	s = *dr.kept.view()
	s.Size = int(stateSizes[dr.rec.Config.Type])
	return s, nil
}
