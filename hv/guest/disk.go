package guest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/grailos/grail/hv/abi"
	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/virtioblk"
)

// DiskFeatures are the virtio features that a native client always uses; whoever attaches its queues to a
// driver negotiates at least these.
const DiskFeatures = ring.FeatureVersion1 | ring.FeatureEventIdx | ring.FeatureIndirect

// maxRequest is the most data that one request carries, in bytes. Larger ones are split.
const maxRequest = 256 << 10

// Disk is a disk of this VM, served by a driver VM. It is safe for concurrent use: requests spread over its
// queues. Its methods wait as long as it takes, however often the driver VM dies meanwhile; an error means
// that the request itself was refused, or that the device failed. A driver VM that breaks the ring's rules is replaced as one that dies.
type Disk struct {
	name     string
	buffers  []byte
	pool     *pool
	queues   []*queue
	size     int64
	block    int64
	max      uint32 // largest request, bytes
	readOnly bool
	config   virtioblk.Config
}

var (
	opened   = map[string]*Disk{}
	openedMu sync.Mutex
)

// OpenDisk returns the disk called name: DISK of grailctl's --disk DRIVER/DISK, or DRIVER/DISK in full where the
// VM has several disks of one name. It maps the disk's memory once; opening a disk again yields the same Disk.
// Errors: ErrOutside; no such disk, with the names that there are.
func OpenDisk(name string) (*Disk, error) {
	openedMu.Lock()
	defer openedMu.Unlock()
	if d := opened[name]; d != nil {
		return d, nil
	}
	caps, err := Caps()
	if err != nil {
		return nil, err
	}
	g, ok := find(caps, abi.CapDisk, name)
	if !ok {
		return nil, fmt.Errorf("guest: no disk %q; this VM has %s", name, diskNames(caps))
	}
	mem, err := mapMemory(caps, g)
	if err != nil {
		return nil, err
	}
	d, err := NewDisk(name, mem, &g.Config, g.Rights&abi.RightWrite == 0, bells(caps, abi.CapKick, g.Name), bells(caps, abi.CapCall, g.Name))
	if err != nil {
		return nil, err
	}
	opened[name] = d
	return d, nil
}

// Disks returns the names of this VM's disks. Errors: ErrOutside.
func Disks() ([]string, error) {
	caps, err := Caps()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range caps {
		if c.Kind == abi.CapDisk {
			names = append(names, c.Name)
		}
	}
	return names, nil
}

func diskNames(caps []abi.Cap) string {
	s := ""
	for _, c := range caps {
		if c.Kind == abi.CapDisk {
			s += fmt.Sprintf(" %q", c.Name)
		}
	}
	if s == "" {
		return "none: give it one with grailctl run --disk DRIVER/DISK"
	}
	return s[1:]
}

// NewDisk returns the disk in the grant mem, whose geometry and virtio_blk_config stand in config as abi.DiskGrant says, with each queue's doorbells by index. OpenDisk does this with the
// capability table's entries; tests do it with memory of their own. It initialises the queues. Errors: a
// grant that is invalid or too small, a queue without doorbells.
func NewDisk(name string, mem Memory, config *[64]byte, readOnly bool, kick, call map[int]ring.Doorbell) (*Disk, error) {
	g := abi.ParseDiskGrant(config)
	if !g.Valid() {
		return nil, fmt.Errorf("guest: disk %s: invalid grant of %d queues of %d", name, g.Queues, g.QueueSize)
	}
	c := virtioblk.DecodeConfig(config[:abi.DiskConfigSize])
	d := &Disk{name: name, buffers: mem.Buffers, config: c, readOnly: readOnly, block: virtioblk.SectorSize}
	if c.Capacity > math.MaxInt64/virtioblk.SectorSize {
		return nil, fmt.Errorf("guest: disk %s: capacity of %d sectors is too large", name, c.Capacity)
	}
	d.size = int64(c.Capacity) * virtioblk.SectorSize
	if b := int64(c.BlockSize); b > d.block && b <= poolUnit && b&(b-1) == 0 {
		d.block = b
	}
	mm, err := mem.holds(g.Queues, g.QueueSize)
	if err != nil {
		return nil, fmt.Errorf("guest: disk %s: %w", name, err)
	}
	// The start of the buffers holds the requests' status bytes. A small pool means fewer requests at a time.
	depth, size := int(g.QueueSize), uint64(len(mem.Buffers))
	for depth > 1 && uint64(g.Queues)*uint64(depth)*statusBytes > size/2 {
		depth /= 2
	}
	start := (uint64(g.Queues)*uint64(depth)*statusBytes + poolUnit - 1) / poolUnit * poolUnit
	if start+poolUnit > size {
		return nil, fmt.Errorf("guest: disk %s: %d bytes of buffers are too few for %d queues of %d", name, size, g.Queues, g.QueueSize)
	}
	d.pool = newPool(start, size-start)
	d.max = uint32(min(d.pool.max(), maxRequest))
	for i := range int(g.Queues) {
		k, ok1 := kick[i]
		c, ok2 := call[i]
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("guest: disk %s: queue %d has no doorbells", name, i)
		}
		at := abi.RequestsAt(i, g.Queues, g.QueueSize)
		drv, err := ring.NewDriver(mm, ring.DriverConfig{
			Queue:          abi.QueueAt(i, g.QueueSize, DiskFeatures),
			IndirectTables: abi.RingsAt + at, IndirectMax: slotSegments, UsedReadOnly: true,
		})
		if err != nil {
			return nil, fmt.Errorf("guest: disk %s, queue %d: %w", name, i, err)
		}
		q := newQueue(drv, k, c, newEpoch(&mem, i))
		q.addRequests(&mem, depth, at+ring.IndirectBytes(g.QueueSize, slotSegments), uint64(i)*uint64(depth)*statusBytes)
		d.queues = append(d.queues, q)
	}
	if len(d.queues) > 1 {
		for _, q := range d.queues {
			q.others = d.restart
		}
	}
	return d, nil
}

// restart starts those queues anew whose epoch is over and that nobody looks at.
func (d *Disk) restart() {
	for _, q := range d.queues {
		q.mu.Lock()
		if !q.reaping && q.epoch.over() {
			q.restart()
		}
		q.mu.Unlock()
	}
}

// Name returns the disk's name.
func (d *Disk) Name() string { return d.name }

// Size returns the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// BlockSize returns the unit of writes in bytes, a power of two from 512 to 4096.
func (d *Disk) BlockSize() int { return int(d.block) }

// ReadOnly reports whether changes are refused.
func (d *Disk) ReadOnly() bool { return d.readOnly }

// Depth returns how many requests may be outstanding at once.
func (d *Disk) Depth() int { return len(d.queues) * len(d.queues[0].requests) }

// ID returns what the driver says the disk is called, at most 20 bytes.
func (d *Disk) ID() (string, error) {
	buf := d.pool.alloc(poolUnit)
	defer d.pool.release(buf, poolUnit)
	id := d.buffers[buf:][:virtioblk.IDBytes]
	clear(id)
	if err := d.do(virtioblk.TypeGetID, 0, buf, virtioblk.IDBytes, nil); err != nil {
		return "", err
	}
	s, _, _ := bytes.Cut(bytes.Clone(id), []byte{0})
	return string(s), nil
}

// Flush returns once every write that returned before is durable.
func (d *Disk) Flush() error { return d.do(virtioblk.TypeFlush, 0, 0, 0, nil) }

// Discard tells the device that n bytes from off on are no longer needed; what they read as is undefined.
// Errors: ErrReadOnly, ErrUnaligned, ErrBounds, errors.ErrUnsupported, ErrDevice.
func (d *Disk) Discard(off, n int64) error {
	if d.config.MaxDiscardSegs == 0 {
		return &RequestError{Kind: virtioblk.TypeDiscard, Offset: off, Err: errors.ErrUnsupported}
	}
	return d.ranges(virtioblk.TypeDiscard, off, n, d.config.MaxDiscardSectors, 0)
}

// WriteZeroes makes n bytes from off on read as zeroes, and may deallocate them when unmap is set. Errors:
// as Discard.
func (d *Disk) WriteZeroes(off, n int64, unmap bool) error {
	if d.config.MaxWriteZeroSegs == 0 {
		return &RequestError{Kind: virtioblk.TypeWriteZeroes, Offset: off, Err: errors.ErrUnsupported}
	}
	var flags uint32
	if unmap && d.config.WriteZeroMayUnmap == 1 {
		flags = virtioblk.RangeUnmap
	}
	return d.ranges(virtioblk.TypeWriteZeroes, off, n, d.config.MaxWriteZeroSectors, flags)
}

// ranges splits [off, off+n) into requests of at most limit sectors.
func (d *Disk) ranges(kind uint32, off, n int64, limit, flags uint32) error {
	if err := d.check(kind, off, n); err != nil {
		return err
	}
	limit = max(limit/uint32(d.block/virtioblk.SectorSize)*uint32(d.block/virtioblk.SectorSize), uint32(d.block/virtioblk.SectorSize))
	for n > 0 {
		sectors := uint32(min(uint64(n)/virtioblk.SectorSize, uint64(limit)))
		var p [virtioblk.RangeBytes]byte
		virtioblk.Range{Sector: uint64(off) / virtioblk.SectorSize, Count: sectors, Flags: flags}.Encode(p[:])
		if err := d.do(kind, off, 0, sectors*virtioblk.SectorSize, p[:]); err != nil {
			return err
		}
		off += int64(sectors) * virtioblk.SectorSize
		n -= int64(sectors) * virtioblk.SectorSize
	}
	return nil
}

// check refuses a request that the disk cannot take.
func (d *Disk) check(kind uint32, off, n int64) error {
	var err error
	switch {
	case d.readOnly && kind != virtioblk.TypeIn:
		err = ErrReadOnly
	case off < 0 || n < 0 || off > d.size || n > d.size-off:
		err = ErrBounds
	case off%d.block != 0 || n%d.block != 0:
		err = fmt.Errorf("%w of %d bytes", ErrUnaligned, d.block)
	default:
		return nil
	}
	return &RequestError{Kind: kind, Offset: off, Bytes: uint32(min(max(n, 0), math.MaxUint32)), Err: err}
}

// do performs one request.
func (d *Disk) do(kind uint32, off int64, data uint64, n uint32, payload []byte) error {
	q := d.pick()
	r, err := q.start(kind, off, data, n, payload)
	if err != nil {
		return err
	}
	return q.await(r)
}

// pick returns the queue with the fewest requests outstanding: a single caller always uses the first one, so
// that only one queue has to be polled.
func (d *Disk) pick() *queue {
	best := d.queues[0]
	load := best.load.Load()
	for _, q := range d.queues[1:] {
		if load == 0 {
			break
		}
		if l := q.load.Load(); l < load {
			best, load = q, l
		}
	}
	return best
}

// Rekicks returns how often a request waited so long that its doorbell was rung again. It grows while a
// driver is being replaced.
func (d *Disk) Rekicks() uint64 {
	var n uint64
	for _, q := range d.queues {
		q.mu.Lock()
		n += q.rekicks
		q.mu.Unlock()
	}
	return n
}
