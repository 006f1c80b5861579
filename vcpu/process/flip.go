//go:build linux && amd64

package process

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

// Memory is a run of a guest's own memory, shared with nobody; a page of a file gets a copy when it is changed.
type Memory struct {
	Span
	Exec, Write bool
}

// Bounds of what Memory reads.
const (
	maxMaps  = 4 << 20   // bytes of /proc/PID/maps
	maxPages = 256 << 10 // pages whose presence is looked up
)

// Memory lists the guest's own memory as far as it is present, in order. Errors: ErrUntraced.
func (g *Guest) Memory() ([]Memory, error) {
	if g.maps < 0 || g.pagemap < 0 {
		return nil, ErrUntraced
	}
	var text []byte
	for chunk := make([]byte, 64<<10); len(text) < maxMaps; {
		n, err := unix.Pread(g.maps, chunk, int64(len(text)))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		text = append(text, chunk[:n]...)
	}
	var list []Memory
	pages := maxPages
	for line := range bytes.Lines(text) {
		m, ok := parseMap(line)
		if !ok || !m.Exec && !m.Write {
			continue
		}
		pages = g.present(m, pages, func(s Span) { list = append(list, Memory{Span: s, Exec: m.Exec, Write: m.Write}) })
	}
	return list, nil
}

// parseMap reads a line of /proc/PID/maps (proc(5)); false where it is not the guest's own memory.
func parseMap(line []byte) (m Memory, ok bool) {
	f := bytes.Fields(line)
	if len(f) < 5 || len(f[1]) != 4 || f[1][3] != 'p' {
		return m, false
	}
	if len(f) > 5 && (bytes.HasPrefix(f[5], []byte("[v"))) { // vdso, vvar, vsyscall
		return m, false
	}
	first, last, _ := bytes.Cut(f[0], []byte("-"))
	start, err1 := strconv.ParseUint(string(first), 16, 64)
	end, err2 := strconv.ParseUint(string(last), 16, 64)
	if err1 != nil || err2 != nil || end <= start {
		return m, false
	}
	return Memory{Span: Span{start, end - start}, Write: f[1][1] == 'w', Exec: f[1][2] == 'x'}, true
}

// present calls f for each run of pages of m that are there, as far as `most` pages go, and returns how many are left of those.
func (g *Guest) present(m Memory, most int, f func(Span)) int {
	const entry, there = 8, 1 << 63 // Documentation/admin-guide/mm/pagemap.rst
	var run Span
	buf := make([]byte, 4096*entry)
	for at := m.Addr; at < m.Addr+m.Len && most > 0; {
		n := min(uint64(len(buf)/entry), (m.Addr+m.Len-at)/pageSize, uint64(most))
		k, err := unix.Pread(g.pagemap, buf[:n*entry], int64(at/pageSize*entry))
		if err != nil || k < entry {
			break
		}
		for i := 0; i+entry <= k; i += entry {
			if binary.LittleEndian.Uint64(buf[i:])&there == 0 {
				continue
			}
			page := at + uint64(i/entry)*pageSize
			if run.Addr+run.Len == page {
				run.Len += pageSize
				continue
			}
			if run.Len > 0 {
				f(run)
			}
			run = Span{page, pageSize}
		}
		at += uint64(k/entry) * pageSize
		most -= k / entry
	}
	if run.Len > 0 {
		f(run)
	}
	return most
}

// Poke writes b to the guest's memory at addr, also where the guest may not write: a page of the program is copied first. Errors: EFAULT, ErrUntraced.
func (g *Guest) Poke(addr uint64, b []byte) error {
	if g.mem < 0 {
		return ErrUntraced
	}
	if int64(addr) < 0 {
		return unix.EFAULT
	}
	n, err := unix.Pwrite(g.mem, b, int64(addr))
	if err != nil || n != len(b) {
		return unix.EFAULT
	}
	return nil
}
