package abi

// Offsets in a driver's status page (CapStatus), one 4 KiB page that the driver writes and hv reads. Each
// field is a naturally aligned little-endian uint64, written atomically.
const (
	// StatusBeat counts the rounds of the driver's workers. It must move while work is pending: a beat
	// that stands still for a heartbeat period with work pending means that the driver hangs, unless
	// the host is still busy with a SysDevIO for it.
	StatusBeat = 0
	// StatusRequests counts requests completed.
	StatusRequests = 8
	// StatusBytes counts bytes moved.
	StatusBytes = 16
	// StatusSize is the size of the status page in bytes.
	StatusSize = 4096
)
