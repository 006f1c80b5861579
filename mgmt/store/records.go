package store

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/grailos/grail/drivervms/share"
	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/api"
)

// Process names the process of a VM's present run.
type Process struct {
	PID    int    `json:"pid,omitempty"`
	Start  uint64 `json:"start,omitempty"` // hv.Process.StartTime
	BootID string `json:"bootID,omitempty"`
	Launch int    `json:"launch,omitempty"` // number of a driver's process
}

// VM is the record of a personality VM.
type VM struct {
	Config     api.VMConfig `json:"config"`
	State      api.State    `json:"state"`
	Generation int          `json:"generation"`
	Engine     hv.Engine    `json:"engine,omitempty"`
	Process    Process      `json:"process"`
	Created    time.Time    `json:"created"`
	Started    time.Time    `json:"started,omitzero"`
	Ended      time.Time    `json:"ended,omitzero"`
	Report     *hv.Report   `json:"report,omitempty"`
	Notes      []string     `json:"notes,omitempty"`
	Lent       bool         `json:"lent,omitempty"` // it was asked for memory, and is to have it again
}

// Driver is the record of a driver VM.
type Driver struct {
	Config     api.DriverConfig `json:"config"`
	Generation int              `json:"generation"` // instances that were to serve
	Launch     int              `json:"launch"`     // processes started, spares among them
	Engine     hv.Engine        `json:"engine,omitempty"`
	Process    Process          `json:"process"`
	Created    time.Time        `json:"created"`
	Started    time.Time        `json:"started,omitzero"`
	Crashes    int              `json:"crashes"`
	// Shares is what clients get of it; see api.DriverShare.
	Shares map[string]share.Config `json:"shares,omitempty"`

	SpareCrashes int      `json:"spareCrashes,omitempty"`
	Notes        []string `json:"notes,omitempty"`
	Program      string   `json:"program,omitempty"` // digest of the program that the next instance runs; empty: the installed one
	Runs         string   `json:"runs,omitempty"`    // of the present instance
	Upgrade      *Upgrade `json:"upgrade,omitempty"` // the last one
}

// Upgrade says what an upgrade of a driver replaced.
type Upgrade struct {
	From string    `json:"from"` // digest of the program before; empty: the installed one
	At   time.Time `json:"at"`
}

// maxCrashes is how many crash records are kept for one driver.
const maxCrashes = 1000

// PutVM writes a record and returns when it is on disk.
func (s *Store) PutVM(r *VM) error {
	f, err := put(vmBucket, []byte(r.Config.Name), r)
	if err != nil {
		return err
	}
	return s.update(f)
}

// PutVMLater writes a record soon, after all writes asked for before.
func (s *Store) PutVMLater(r *VM) {
	f, err := put(vmBucket, []byte(r.Config.Name), r)
	if err != nil {
		s.onError(err)
		return
	}
	s.later(f)
}

// DeleteVM removes a record, if it is there.
func (s *Store) DeleteVM(name string) error {
	return s.update(func(tx *bolt.Tx) error { return tx.Bucket(vmBucket).Delete([]byte(name)) })
}

// VMs returns every VM's record, by name.
func (s *Store) VMs() ([]*VM, error) { return all[VM](s, vmBucket) }

// PutDriver writes a record and returns when it is on disk.
func (s *Store) PutDriver(r *Driver) error {
	f, err := put(driverBucket, []byte(r.Config.Name), r)
	if err != nil {
		return err
	}
	return s.update(f)
}

// PutDriverLater writes a record soon, after all writes asked for before.
func (s *Store) PutDriverLater(r *Driver) {
	f, err := put(driverBucket, []byte(r.Config.Name), r)
	if err != nil {
		s.onError(err)
		return
	}
	s.later(f)
}

// DeleteDriver removes a driver's record and its crash records.
func (s *Store) DeleteDriver(name string) error {
	return s.update(func(tx *bolt.Tx) error {
		if err := tx.Bucket(driverBucket).Delete([]byte(name)); err != nil {
			return err
		}
		if tx.Bucket(crashBucket).Bucket([]byte(name)) == nil {
			return nil
		}
		return tx.Bucket(crashBucket).DeleteBucket([]byte(name))
	})
}

// Drivers returns every driver's record, by name.
func (s *Store) Drivers() ([]*Driver, error) { return all[Driver](s, driverBucket) }

// PutCrashLater writes a crash record soon, in place of an earlier one of the same driver and ID. Beyond the newest
// 1,000 of a driver, records are dropped.
func (s *Store) PutCrashLater(c *api.Crash) {
	v, err := json.Marshal(c)
	if err != nil {
		s.onError(fmt.Errorf("store: encode crash: %w", err))
		return
	}
	driver, key := []byte(c.Driver), binary.BigEndian.AppendUint64(nil, c.ID)
	s.later(func(tx *bolt.Tx) error {
		// A driver that was removed meanwhile takes its records along.
		if tx.Bucket(driverBucket).Get(driver) == nil {
			return nil
		}
		b, err := tx.Bucket(crashBucket).CreateBucketIfNotExists(driver)
		if err != nil {
			return err
		}
		if err := b.Put(key, v); err != nil {
			return err
		}
		if b.Inspect().KeyN <= maxCrashes {
			return nil
		}
		if first, _ := b.Cursor().First(); first != nil {
			return b.Delete(first)
		}
		return nil
	})
}

// Crashes returns the crash records of one driver, or of all when driver is empty, oldest first.
func (s *Store) Crashes(driver string) ([]api.Crash, error) {
	list := []api.Crash{}
	err := s.db.View(func(tx *bolt.Tx) error {
		one := func(name []byte) error {
			b := tx.Bucket(crashBucket).Bucket(name)
			if b == nil {
				return nil
			}
			return b.ForEach(func(_, v []byte) error {
				var c api.Crash
				if err := json.Unmarshal(v, &c); err != nil {
					return fmt.Errorf("store: crash record of %s: %w", name, err)
				}
				list = append(list, c)
				return nil
			})
		}
		if driver != "" {
			return one([]byte(driver))
		}
		return tx.Bucket(crashBucket).ForEachBucket(one)
	})
	if err == nil && driver == "" {
		// IDs are given out in order of time.
		slices.SortFunc(list, func(a, b api.Crash) int { return cmp.Compare(a.ID, b.ID) })
	}
	return list, err
}

func all[T any](s *Store, bucket []byte) ([]*T, error) {
	var list []*T
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucket).ForEach(func(k, v []byte) error {
			r := new(T)
			if err := json.Unmarshal(v, r); err != nil {
				return fmt.Errorf("store: record %s: %w", k, err)
			}
			list = append(list, r)
			return nil
		})
	})
	return list, err
}
