package vfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/hv/abi"
)

// Installed is one capability of the guest's table.
type Installed struct {
	FD     int32  // the guest's descriptor when it was installed
	Object uint64 // see Mapping.Object; 0 for what is no memory
	f      *file
}

// InstallCaps adds capabilities to the guest's table, in order, at the lowest free descriptors. The descriptors
// in specs are duplicated: they stay the caller's. On an error nothing is installed.
func (t *Table) InstallCaps(specs ...hv.CapSpec) ([]Installed, error) {
	var list []Installed
	for i := range specs {
		k, err := t.installCap(&specs[i])
		if err != nil {
			t.Remove(list...)
			return nil, fmt.Errorf("vfs: capability %q: %w", specs[i].Name, err)
		}
		list = append(list, k)
	}
	return list, nil
}

func (t *Table) installCap(s *hv.CapSpec) (Installed, error) {
	c := &abi.Cap{Kind: s.Kind, Name: s.Name, Index: s.Index, Rights: s.Rights, Size: s.Size}
	if len(s.Config) > len(c.Config) {
		return Installed{}, fmt.Errorf("config of %d bytes", len(s.Config))
	}
	copy(c.Config[:], s.Config)
	if _, err := abi.AppendCap(nil, *c); err != nil {
		return Installed{}, err
	}
	o, flags, err := t.capObject(s)
	if err != nil {
		return Installed{}, err
	}
	f := newFile(o, flags)
	f.refs.Add(1)
	defer f.put()
	fd, e := t.install(f, 0, true, c)
	if e != 0 {
		return Installed{}, e
	}
	k := Installed{FD: int32(fd), f: f}
	if m, ok := o.(*memory); ok {
		k.Object = m.id
	}
	return k, nil
}

// accessMode is the open mode that goes with rights.
func accessMode(rights uint32) int {
	switch rights & (abi.RightRead | abi.RightWrite) {
	case abi.RightRead:
		return unix.O_RDONLY
	case abi.RightWrite:
		return unix.O_WRONLY
	case abi.RightRead | abi.RightWrite:
		return unix.O_RDWR
	}
	return unix.O_PATH
}

func (t *Table) capObject(s *hv.CapSpec) (object, int, error) {
	if s.Kind == abi.CapControl {
		t.control.mu.Lock()
		err := t.control.open()
		t.control.mu.Unlock()
		return &controlEnd{t.control}, unix.O_RDWR, err
	}
	if s.Size > 1<<62 {
		return nil, 0, fmt.Errorf("size of %d bytes", s.Size)
	}
	if s.FD < 0 {
		return nil, 0, errors.New("no descriptor")
	}
	fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("descriptor %d: %w", s.FD, err)
	}
	o, err := t.hostCap(s, fd)
	if err != nil {
		unix.Close(fd)
		return nil, 0, err
	}
	flags := accessMode(s.Rights)
	if s.Kind == abi.CapPacket {
		flags |= unix.O_NONBLOCK
	}
	return o, flags, nil
}

func (t *Table) hostCap(s *hv.CapSpec, fd int) (object, error) {
	switch s.Kind {
	case abi.CapKick, abi.CapCall:
		return &event{fd: fd, rights: s.Rights, shared: true, faults: &t.Faults, call: s.Kind == abi.CapCall}, nil
	case abi.CapDevice:
		return &device{t: t, fd: fd, bytes: int64(s.Size), rights: s.Rights, label: s.Name,
			id: t.objects.Add(1), fixed: regularSize(fd), faults: t.faultsOf(t.page)}, nil
	case abi.CapPacket:
		return newPacket(s, fd)
	case abi.CapStatus, abi.CapDisk, abi.CapNet, abi.CapRings, abi.CapUsed, abi.CapGrant, abi.CapLog, abi.CapState:
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		if s.Size == 0 || uint64(st.Size) < s.Size {
			return nil, fmt.Errorf("size %d, but its memory has %d bytes", s.Size, st.Size)
		}
		return &memory{fd: fd, bytes: s.Size, rights: s.Rights, kind: s.Kind, id: t.objects.Add(1), label: s.Name}, nil
	}
	return nil, fmt.Errorf("kind %d is unknown", s.Kind)
}

// Remove withdraws capabilities: every guest descriptor of theirs goes, also duplicates that the guest made.
// Mappings are the caller's to revoke, by Object. A call in progress on one of them ends by itself.
func (t *Table) Remove(list ...Installed) {
	for _, k := range list {
		if k.f == nil {
			continue
		}
		drops := 0
		t.mu.Lock()
		for i := range t.slots {
			if t.slots[i].f == k.f {
				t.slots[i] = slot{}
				drops++
			}
		}
		t.mu.Unlock()
		for range drops {
			k.f.put()
		}
	}
}

// sysCaps copies the capability table, in the order of descriptors.
func (t *Table) sysCaps(c *Call, addr, n uint64) (uint64, unix.Errno) {
	t.mu.RLock()
	var wire []byte
	for i := range t.slots {
		if k := t.slots[i].cap; k != nil {
			wire, _ = abi.AppendCap(wire, *k) // its name was checked when it was installed
		}
	}
	t.mu.RUnlock()
	return uint64(len(wire)), c.copyOut(addr, wire[:min(n, uint64(len(wire)))])
}

// memory is a capability for memory of another VM. It is there to be mapped.
type memory struct {
	noIO
	fd     int
	bytes  uint64
	rights uint32
	kind   abi.CapKind
	id     uint64
	label  string
}

func (m *memory) stat(st *stat) { st.mode, st.size = unix.S_IFREG|0o600, int64(m.bytes) }
func (m *memory) pollFD() int   { return -1 }
func (m *memory) name() string  { return "grail:memory:" + m.label }
func (m *memory) release()      { unix.Close(m.fd) }
