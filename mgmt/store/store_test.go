package store

import (
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestRecordsSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	vm := &VM{Config: api.VMConfig{Name: "web", Program: "/bin/web", Disks: []api.DiskRef{{Driver: "blk0", Disk: "root"}}},
		State: api.Running, Generation: 3, Process: Process{PID: 7, Start: 99}}
	if err := s.PutVM(vm); err != nil {
		t.Fatal(err)
	}
	vm.State = api.Exited
	vm.Report = &hv.Report{Cause: hv.CauseExit, Code: 4}
	s.PutVMLater(vm)
	if err := s.PutDriver(&Driver{Config: api.DriverConfig{Name: "blk0"}}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		s.PutCrashLater(&api.Crash{ID: uint64(10 + i), Driver: "blk0", Generation: i})
	}
	s.PutCrashLater(&api.Crash{ID: 11, Driver: "blk0", Generation: 1, Cause: hv.CauseHang})
	s.PutCrashLater(&api.Crash{ID: 12, Driver: "removed"})
	id := s.ID
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	if s.ID != id || id == "" {
		t.Errorf("ID %q, then %q", id, s.ID)
	}
	vms, err := s.VMs()
	if err != nil || len(vms) != 1 || vms[0].State != api.Exited || vms[0].Report.Code != 4 || vms[0].Config.Disks[0].Disk != "root" {
		t.Fatalf("%+v, %v", vms, err)
	}
	crashes, err := s.Crashes("")
	if err != nil || len(crashes) != 3 || crashes[1].Cause != hv.CauseHang {
		t.Fatalf("%+v, %v", crashes, err)
	}
	if err := s.DeleteDriver("blk0"); err != nil {
		t.Fatal(err)
	}
	if crashes, _ := s.Crashes("blk0"); len(crashes) != 0 {
		t.Errorf("crashes of a removed driver: %+v", crashes)
	}
	if err := s.DeleteVM("web"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVM("web"); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if vms, _ := s.VMs(); len(vms) != 0 {
		t.Errorf("%+v", vms)
	}
}

func TestOpenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	open(t, path)
	if s, err := Open(path, nil); err == nil {
		s.Close()
		t.Error("opened twice")
	}
}

func TestNextID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, path)
	var mu sync.Mutex
	var ids []uint64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range idBlock {
				id, err := s.NextID()
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				ids = append(ids, id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(ids)
	if n := len(slices.Compact(slices.Clone(ids))); n != 4*idBlock {
		t.Errorf("%d different IDs of %d", n, 4*idBlock)
	}
	last := ids[len(ids)-1]
	s.Close()
	s = open(t, path)
	if id, err := s.NextID(); err != nil || id <= last {
		t.Errorf("after reopening: %d, %v; the last was %d", id, err, last)
	}
}

func TestCrashesBounded(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	if err := s.PutDriver(&Driver{Config: api.DriverConfig{Name: "blk0"}}); err != nil {
		t.Fatal(err)
	}
	for i := range maxCrashes + 5 {
		s.PutCrashLater(&api.Crash{ID: uint64(i), Driver: "blk0"})
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	list, err := s.Crashes("blk0")
	if err != nil || len(list) != maxCrashes || list[0].ID != 5 {
		t.Errorf("%d records from %d on, %v", len(list), list[0].ID, err)
	}
}

func TestClosed(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := s.PutVM(&VM{}); err != ErrClosed {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
