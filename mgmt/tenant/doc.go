// Package tenant is the arithmetic of reservations: a tree of domains, from the host over tenants and their sub-tenants to VMs and drivers. A
// parent subdivides only what it owns, and what cannot be kept is refused with the sum that shows why. The package does no I/O and knows no
// clock; amounts are exact integers. What enforces a reservation lies elsewhere (mgmt/fence, hv).
package tenant
