package store

import (
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/grailos/grail/mgmt/tenant"
)

// Tenant is the record of a tenant, or of the host itself at tenant.Root.
type Tenant struct {
	Path    tenant.Path  `json:"path"`
	Share   tenant.Share `json:"share,omitzero"`
	Own     tenant.Share `json:"own,omitzero"` // what the host needs for itself; of the host
	Created time.Time    `json:"created"`
}

// key returns the record's key: the host's is a slash, because a key cannot be empty.
func (r *Tenant) key() []byte { return tenantKey(r.Path) }

func tenantKey(p tenant.Path) []byte { return []byte("/" + p) }

// PutTenant writes a record and returns when it is on disk.
func (s *Store) PutTenant(r *Tenant) error {
	f, err := put(tenantBucket, r.key(), r)
	if err != nil {
		return err
	}
	return s.update(f)
}

// DeleteTenant removes a record, if it is there.
func (s *Store) DeleteTenant(p tenant.Path) error {
	return s.update(func(tx *bolt.Tx) error { return tx.Bucket(tenantBucket).Delete(tenantKey(p)) })
}

// Tenants returns every tenant's record, each after its parent's: a path sorts after what it begins with.
func (s *Store) Tenants() ([]*Tenant, error) { return all[Tenant](s, tenantBucket) }
