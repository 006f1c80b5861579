package amd64

import (
	"sync/atomic"
	"unsafe"
)

// Table is one page table: 512 entries in guest memory that CPUs walk concurrently.
type Table [512]uint64

// TableAt views the first page of mem, which must be 8-byte aligned, as a page table.
func TableAt(mem []byte) *Table {
	// Safe: the slice expression bounds it to a full page that mem keeps alive.
	return (*Table)(unsafe.Pointer(&mem[:PageSize][0]))
}

// storeEntry replaces a page-table entry at once, as the CPUs that walk the table require.
func storeEntry(e *uint64, v uint64) { atomic.StoreUint64(e, v) }
