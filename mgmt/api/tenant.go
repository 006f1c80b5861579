package api

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/grailos/grail/mgmt/tenant"
)

// CreateTenant is the body of POST tenants.
type CreateTenant struct {
	Path  string       `json:"path"`
	Share tenant.Share `json:"share"`
}

// SetShare is the body of PATCH tenants/{path} and PATCH vms/{name}/share. Share and Own are JSON objects in the form of a tenant.Share, whose fields
// replace those that there are; the others stay (RFC 7396, but that a driver's entry in devices is replaced as a whole).
type SetShare struct {
	Share json.RawMessage `json:"share,omitempty"`
	Own   json.RawMessage `json:"own,omitempty"` // what the host needs for itself; of the host alone
}

// Domain is a node of the tree of reservations: the host, a tenant, a VM that runs, a driver, or what the host needs for itself.
type Domain struct {
	Kind   tenant.Kind      `json:"kind"`
	Name   string           `json:"name,omitempty"` // path of a tenant, name of a VM or driver
	Parent string           `json:"parent"`         // path of the tenant that it belongs to; empty: the host
	Share  tenant.Share     `json:"share"`
	Held   map[string]int64 `json:"held,omitempty"` // what its children hold of it, by resource
	Live   bool             `json:"live"`           // something in it runs
	Due    tenant.Milli     `json:"due"`            // processor time due to it while everybody who runs wants more
	CPU    *CPUUsage        `json:"cpu,omitempty"`
	// MemoryUsed is what it uses of the host's memory, in bytes; nil: that is not counted here.
	MemoryUsed *uint64   `json:"memoryUsed,omitempty"`
	Created    time.Time `json:"created,omitzero"`
	Notes      []string  `json:"notes,omitempty"` // what is not enforced, and why
}

// CPUUsage is what a domain used of the processors since its group was made, which is when the first VM in it started.
type CPUUsage struct {
	UsedNs      uint64    `json:"usedNs"`
	ThrottledNs uint64    `json:"throttledNs"` // during which its cap held it up
	Time        time.Time `json:"time"`        // of the counters
}

// tenantSeg returns a tenant's path as part of a URL.
func tenantSeg(path string) string {
	var parts []string
	for p := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parts = append(parts, seg(p))
	}
	return strings.Join(parts, "/")
}

// Tenants lists the tree of reservations, each node after its parent.
func (c *Client) Tenants(ctx context.Context) (list []Domain, err error) {
	return list, c.do(ctx, "GET", "tenants", nil, &list)
}

// Tenant lists a tenant and what is below it, each node after its parent.
func (c *Client) Tenant(ctx context.Context, path string) (list []Domain, err error) {
	return list, c.do(ctx, "GET", "tenants/"+tenantSeg(path), nil, &list)
}

// CreateTenant makes a tenant.
func (c *Client) CreateTenant(ctx context.Context, r CreateTenant) (list []Domain, err error) {
	return list, c.do(ctx, "POST", "tenants", r, &list)
}

// SetTenant changes what a tenant, or the host, owns.
func (c *Client) SetTenant(ctx context.Context, path string, r SetShare) (list []Domain, err error) {
	return list, c.do(ctx, "PATCH", "tenants/"+tenantSeg(path), r, &list)
}

// RemoveTenant forgets a tenant that nobody uses.
func (c *Client) RemoveTenant(ctx context.Context, path string) error {
	return c.do(ctx, "DELETE", "tenants/"+tenantSeg(path), nil, nil)
}

// SetVM changes the share of a VM, at once if it runs.
func (c *Client) SetVM(ctx context.Context, name string, r SetShare) (v VM, err error) {
	return v, c.do(ctx, "PATCH", "vms/"+seg(name)+"/share", r, &v)
}
