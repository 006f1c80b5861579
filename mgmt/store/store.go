package store

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// The buckets and the keys of the first.
var (
	metaBucket   = []byte("meta")
	vmBucket     = []byte("vms")
	driverBucket = []byte("drivers")
	crashBucket  = []byte("crashes")
	tenantBucket = []byte("tenants")

	keyID   = []byte("id")
	keyNext = []byte("next")
)

// ErrNotFound reports a name of which there is no record.
var ErrNotFound = errors.New("store: not found")

// ErrClosed reports a write to a closed store.
var ErrClosed = errors.New("store: closed")

// idBlock is how many numbers are reserved by one transaction. At most that many are lost when graild is killed.
const idBlock = 1024

// Store is an open store. Its methods are safe for concurrent use. The zero value is of no use; see Open.
type Store struct {
	// ID is a random name of this store, the same at every Open.
	ID string

	db      *bolt.DB
	onError func(error)

	mu      sync.Mutex
	work    *sync.Cond
	queue   []job
	closed  bool
	done    chan struct{}
	next    uint64 // the next number, below limit
	limit   uint64 // reserved on disk
	writing sync.Mutex
}

type job struct {
	apply func(*bolt.Tx) error // nil: nothing, but in its turn
	done  chan error           // nil: nobody waits
}

// Open opens or creates the store at path. It fails when another process has it open. onError is told of writes
// that failed and that nobody waited for; it may be nil.
func Open(path string, onError func(error)) (*Store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("store: open %s: %w", path, err)
	}
	if onError == nil {
		onError = func(error) {}
	}
	s := &Store{db: db, onError: onError, done: make(chan struct{})}
	s.work = sync.NewCond(&s.mu)
	if err := db.Update(s.init); err != nil {
		db.Close()
		return nil, fmt.Errorf("store: prepare %s: %w", path, err)
	}
	go s.write()
	return s, nil
}

func (s *Store) init(tx *bolt.Tx) error {
	for _, b := range [][]byte{metaBucket, vmBucket, driverBucket, crashBucket, tenantBucket} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	meta := tx.Bucket(metaBucket)
	if id := meta.Get(keyID); id != nil {
		s.ID = string(id)
	} else {
		var b [6]byte
		if _, err := rand.Read(b[:]); err != nil {
			return err
		}
		s.ID = hex.EncodeToString(b[:])
		if err := meta.Put(keyID, []byte(s.ID)); err != nil {
			return err
		}
	}
	s.next = 1
	if b := meta.Get(keyNext); len(b) == 8 {
		s.next = binary.BigEndian.Uint64(b)
	}
	s.limit = s.next + idBlock
	return meta.Put(keyNext, binary.BigEndian.AppendUint64(nil, s.limit))
}

// NextID returns a number that no other call on this store ever returned, from 1 on.
func (s *Store) NextID() (uint64, error) {
	s.mu.Lock()
	if s.next < s.limit {
		defer s.mu.Unlock()
		s.next++
		return s.next - 1, nil
	}
	s.mu.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	limit := s.limit
	full := s.next >= limit
	s.mu.Unlock()
	if full {
		limit += idBlock
		err := s.update(func(tx *bolt.Tx) error {
			return tx.Bucket(metaBucket).Put(keyNext, binary.BigEndian.AppendUint64(nil, limit))
		})
		if err != nil {
			return 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	s.next++
	return s.next - 1, nil
}

// Close makes all queued writes and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.work.Signal()
	s.mu.Unlock()
	<-s.done
	return s.db.Close()
}

// Sync returns when every write asked for before is on disk.
func (s *Store) Sync() error { return s.update(nil) }

// update queues a write and waits for it.
func (s *Store) update(apply func(*bolt.Tx) error) error {
	done := make(chan error, 1)
	if !s.enqueue(job{apply: apply, done: done}) {
		return ErrClosed
	}
	return <-done
}

// later queues a write. An error goes to onError.
func (s *Store) later(apply func(*bolt.Tx) error) {
	if !s.enqueue(job{apply: apply}) {
		s.onError(ErrClosed)
	}
}

func (s *Store) enqueue(j job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.queue = append(s.queue, j)
	s.work.Signal()
	return true
}

// write makes the queued writes, all that wait in one transaction.
func (s *Store) write() {
	defer close(s.done)
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed {
			s.work.Wait()
		}
		jobs := s.queue
		s.queue = nil
		s.mu.Unlock()
		if len(jobs) == 0 {
			return
		}
		err := s.commit(jobs)
		for _, j := range jobs {
			if j.done != nil {
				j.done <- err
			} else if err != nil {
				s.onError(fmt.Errorf("store: write: %w", err))
			}
		}
	}
}

// commit makes writes in one transaction, none if there is nothing to write.
func (s *Store) commit(jobs []job) error {
	if !slices.ContainsFunc(jobs, func(j job) bool { return j.apply != nil }) {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, j := range jobs {
			if j.apply == nil {
				continue
			}
			if err := j.apply(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

func put(bucket, key []byte, v any) (func(*bolt.Tx) error, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("store: encode: %w", err)
	}
	return func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(key, b) }, nil
}
