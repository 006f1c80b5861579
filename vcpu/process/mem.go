//go:build linux && amd64

package process

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// Span is guest memory from Addr, Len bytes long.
type Span struct {
	Addr, Len uint64
}

const pageSize = 4096

// maxVector is how many spans one system call takes (UIO_MAXIOV).
const maxVector = 1024

// ReadMem copies guest memory at addr into b and returns how many bytes it copied. Errors: EFAULT when that
// is less than len(b); ErrGone.
func (g *Guest) ReadMem(addr uint64, b []byte) (int, error) {
	return g.copy(b, []Span{{addr, uint64(len(b))}}, false)
}

// WriteMem copies b to guest memory at addr and returns how many bytes it copied. Memory that the guest cannot write
// is not written. Errors as for ReadMem.
func (g *Guest) WriteMem(addr uint64, b []byte) (int, error) {
	return g.copy(b, []Span{{addr, uint64(len(b))}}, true)
}

// ReadSpans fills b from the spans in turn, up to the shorter of both; one system call serves 1024 spans.
// It returns how many bytes it copied: the whole, or those before the first that cannot be read. Errors as for ReadMem.
func (g *Guest) ReadSpans(b []byte, spans []Span) (int, error) { return g.copy(b, spans, false) }

// WriteSpans copies b to the spans in turn; otherwise as ReadSpans.
func (g *Guest) WriteSpans(b []byte, spans []Span) (int, error) { return g.copy(b, spans, true) }

// ReadString reads the NUL-terminated string at addr, without its NUL. Errors: EFAULT; ENAMETOOLONG when there
// is no NUL within max bytes; ErrGone.
func (g *Guest) ReadString(addr uint64, max int) (string, error) {
	var out []byte
	var chunk [256]byte
	for len(out) < max {
		// Never past the end of a page: the next need not be there.
		n := min(len(chunk), max-len(out), pageSize-int(addr%pageSize))
		if _, err := g.ReadMem(addr, chunk[:n]); err != nil {
			return "", err
		}
		if i := bytes.IndexByte(chunk[:n], 0); i >= 0 {
			return string(append(out, chunk[:i]...)), nil
		}
		out = append(out, chunk[:n]...)
		addr += uint64(n)
	}
	return "", unix.ENAMETOOLONG
}

// copy moves bytes between b and the guest.
func (g *Guest) copy(b []byte, spans []Span, write bool) (int, error) {
	total, want := 0, 0
	for len(spans) > 0 && len(b) > 0 {
		// One batch: spans as they are, until b is full.
		remote := make([]unix.RemoteIovec, 0, min(len(spans), maxVector))
		size := 0
		for len(spans) > 0 && len(remote) < maxVector && size < len(b) {
			n := int(min(spans[0].Len, uint64(len(b)-size)))
			if n > 0 {
				remote = append(remote, unix.RemoteIovec{Base: uintptr(spans[0].Addr), Len: n})
			}
			size += n
			spans = spans[1:]
		}
		if size == 0 {
			break
		}
		want += size
		n, err := g.transfer(b[:size], remote, write)
		total += n
		if err != nil {
			return total, err
		}
		b = b[size:]
	}
	return total, nil
}

// transfer moves exactly len(b) bytes, or fails having moved the longest prefix.
func (g *Guest) transfer(b []byte, remote []unix.RemoteIovec, write bool) (int, error) {
	g.mu.Lock()
	reaped, pid := g.reaped, g.pid
	g.mu.Unlock()
	if reaped {
		return 0, ErrGone
	}
	total := 0
	for total < len(b) {
		local := []unix.Iovec{{Base: &b[total]}}
		local[0].SetLen(len(b) - total)
		var n int
		var err error
		if write {
			n, err = unix.ProcessVMWritev(pid, local, remote, 0)
		} else {
			n, err = unix.ProcessVMReadv(pid, local, remote, 0)
		}
		switch err {
		case nil:
		case unix.ESRCH:
			return total, ErrGone
		case unix.EPERM, unix.ENOSYS:
			n, err := g.transferFile(b[total:], remote, write)
			return total + n, err
		default:
			return total, err
		}
		if n == 0 {
			return total, unix.EFAULT
		}
		total += n
		remote = advance(remote, n)
		// A short count stops at a bad page, or at the end of a span before one: try once more from there,
		// which then moves nothing and fails.
	}
	return total, nil
}

// transferFile is transfer by way of /proc/PID/mem, which was opened when the program started.
func (g *Guest) transferFile(b []byte, remote []unix.RemoteIovec, write bool) (int, error) {
	if g.mem < 0 {
		return 0, unix.EPERM
	}
	total := 0
	for _, r := range remote {
		for r.Len > 0 {
			var n int
			var err error
			part := b[total : total+r.Len]
			if int64(r.Base) < 0 {
				return total, unix.EFAULT
			}
			if write {
				n, err = unix.Pwrite(g.mem, part, int64(r.Base))
			} else {
				n, err = unix.Pread(g.mem, part, int64(r.Base))
			}
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return total, unix.EFAULT // EIO, by this file's custom
			}
			if n == 0 {
				return total, ErrGone // the address space is gone
			}
			total += n
			r.Base += uintptr(n)
			r.Len -= n
		}
	}
	return total, nil
}

// advance drops the first n bytes.
func advance(remote []unix.RemoteIovec, n int) []unix.RemoteIovec {
	for n > 0 {
		if remote[0].Len > n {
			remote[0].Base += uintptr(n)
			remote[0].Len -= n
			return remote
		}
		n -= remote[0].Len
		remote = remote[1:]
	}
	return remote
}
