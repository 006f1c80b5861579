package sys

import (
	"bytes"
	"crypto/rand"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/arch/amd64"
	"github.com/grailos/grail/hv/mm"
)

// start says where a loaded program begins.
type start struct{ entry, stack uint64 }

// ErrProgram reports a program that is no static ELF for this machine.
var ErrProgram = errors.New("not a static x86-64 ELF program")

const (
	pieBase  = 0x5555_5555_4000 // where Linux puts position-independent programs without randomisation
	maxImage = 4 << 30
	// maxPopulate bounds the segments whose pages are mapped at the start.
	maxPopulate = 1 << 20
	phdrSize    = 56
)

// load maps the program and builds its first stack. The file is hostile.
func (g *Guest) load() (start, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(g.cfg.Program.Fd()), &st); err != nil {
		return start{}, fmt.Errorf("program: %w", err)
	}
	f, err := elf.NewFile(g.cfg.Program)
	if err != nil {
		return start{}, fmt.Errorf("%w: %v", ErrProgram, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return start{}, fmt.Errorf("%w: it is %v %v %v", ErrProgram, f.Class, f.Machine, f.Type)
	}
	if f.Type == elf.ET_DYN {
		g.bias = pieBase
	}
	var last uint64
	var header uint64
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			return start{}, fmt.Errorf("%w: it needs a dynamic linker", ErrProgram)
		case elf.PT_NOTE:
			g.goRuntime = g.goRuntime || hasGoNote(p)
		case elf.PT_LOAD:
			if p.Filesz > uint64(st.Size) || p.Off > uint64(st.Size)-p.Filesz {
				return start{}, fmt.Errorf("%w: segment at %#x lies outside the file", ErrProgram, p.Vaddr)
			}
			if err := g.loadSegment(p); err != nil {
				return start{}, err
			}
			last = max(last, g.bias+p.Vaddr+p.Memsz)
			if p.Off == 0 { // the ELF header, and the program headers with it
				header = g.bias + p.Vaddr
			}
		}
	}
	if last == 0 {
		return start{}, fmt.Errorf("%w: nothing to load", ErrProgram)
	}
	g.space.SetBreak(last)
	entry := g.bias + f.Entry
	if !amd64.Canonical(entry) {
		return start{}, fmt.Errorf("%w: entry point %#x", ErrProgram, f.Entry)
	}
	var raw [64]byte
	if _, err := g.cfg.Program.ReadAt(raw[:], 0); err != nil {
		return start{}, err
	}
	phoff := binary.LittleEndian.Uint64(raw[32:])
	stack, err := g.buildStack(entry, header+phoff, len(f.Progs))
	return start{entry: entry, stack: stack}, err
}

// hasGoNote reports whether a PT_NOTE segment says that Go's linker made the program: there is a note of type 4 and name "Go" (cmd/link, ELF_NOTE_GOBUILDID_TAG).
func hasGoNote(p *elf.Prog) bool {
	const most = 4096
	b := make([]byte, min(p.Filesz, most))
	n, _ := p.ReadAt(b, 0)
	return bytes.Contains(b[:n], []byte("\x04\x00\x00\x00Go\x00\x00"))
}

// loadSegment maps one PT_LOAD. What is not written to is mapped from the file, shared with every other VM that
// runs it; the rest is copied.
func (g *Guest) loadSegment(p *elf.Prog) error {
	const mask = amd64.PageSize - 1
	if p.Memsz == 0 {
		return nil
	}
	addr := g.bias + p.Vaddr
	if p.Filesz > p.Memsz || p.Memsz > maxImage || p.Vaddr > mm.MaxAddress || p.Off > 1<<62 || (p.Off-p.Vaddr)&mask != 0 {
		return fmt.Errorf("%w: segment at %#x of %d bytes", ErrProgram, p.Vaddr, p.Memsz)
	}
	prot := mm.ProtRead
	if p.Flags&elf.PF_W != 0 {
		prot |= mm.ProtWrite
	}
	if p.Flags&elf.PF_X != 0 {
		prot |= mm.ProtExec
	}
	first, end := addr&^mask, (addr+p.Memsz+mask)&^mask
	if prot&mm.ProtWrite == 0 && p.Filesz == p.Memsz {
		// The rest of the last page shows more of the file, as under Linux.
		src := mm.Source{FD: int(g.cfg.Program.Fd()), Offset: int64(p.Off &^ mask), Size: end - first, Max: mm.ProtRead | mm.ProtExec}
		_, err := g.space.MapHost(first, end-first, prot, mm.Exclusive, src, 0)
		return loadError(err, p)
	}
	if _, err := g.space.MapAnon(first, end-first, mm.ProtRead|mm.ProtWrite, mm.Exclusive); err != nil {
		return loadError(err, p)
	}
	buf := make([]byte, min(p.Filesz, 256<<10))
	r := io.NewSectionReader(g.cfg.Program, int64(p.Off), int64(p.Filesz))
	for at := uint64(0); at < p.Filesz; {
		n, err := io.ReadFull(r, buf[:min(uint64(len(buf)), p.Filesz-at)])
		if err != nil {
			return fmt.Errorf("%w: segment at %#x ends early", ErrProgram, p.Vaddr)
		}
		if err := g.space.CopyOut(addr+at, buf[:n]); err != nil {
			return loadError(err, p)
		}
		at += uint64(n)
	}
	// The data of a small program will all be touched; now it takes no exits.
	if prot&mm.ProtWrite != 0 && end-first <= maxPopulate {
		g.space.Populate(first, end)
	}
	if prot == mm.ProtRead|mm.ProtWrite {
		return nil
	}
	return loadError(g.space.Protect(first, end-first, prot), p)
}

func loadError(err error, p *elf.Prog) error {
	if err != nil {
		return fmt.Errorf("load segment at %#x of %d bytes: %w", p.Vaddr, p.Memsz, err)
	}
	return nil
}

// Types of the auxiliary vector (Linux include/uapi/linux/auxvec.h).
const (
	atPhdr, atPhent, atPhnum, atPagesz, atBase, atFlags, atEntry = 3, 4, 5, 6, 7, 8, 9
	atUID, atEUID, atGID, atEGID, atPlatform, atHwcap, atClktck  = 11, 12, 13, 14, 15, 16, 17
	atSecure, atRandom, atExecfn, atSysinfoEhdr                  = 23, 25, 31, 33
)

// maxArguments bounds argv and env together, in bytes.
const maxArguments = 1 << 20

// buildStack maps the main thread's stack and fills it as the System V ABI says (AMD64 supplement §3.4.1 Initial Stack
// and Register State). It returns the stack pointer.
func (g *Guest) buildStack(entry, phdr uint64, phnum int) (uint64, error) {
	base, err := g.space.MapAnon(mm.MaxAddress-stackSize, stackSize, mm.ProtRead|mm.ProtWrite, mm.Exclusive)
	if err != nil {
		return 0, fmt.Errorf("map the stack: %w", err)
	}
	top := base + stackSize

	var strings bytes.Buffer
	put := func(b []byte) (offset uint64) {
		offset = uint64(strings.Len())
		strings.Write(b)
		return offset
	}
	cstr := func(s string) uint64 { return put(append([]byte(s), 0)) }
	var args, envs []uint64
	for _, s := range g.cfg.Argv {
		args = append(args, cstr(s))
	}
	for _, s := range g.cfg.Env {
		envs = append(envs, cstr(s))
	}
	name := ""
	if len(g.cfg.Argv) > 0 {
		name = g.cfg.Argv[0]
	}
	execfn, platform := cstr(name), cstr("x86_64")
	var random [16]byte
	rand.Read(random[:])
	randomAt := put(random[:])
	if strings.Len() > maxArguments {
		return 0, fmt.Errorf("arguments and environment of %d bytes: %w", strings.Len(), unix.E2BIG)
	}
	at := (top - uint64(strings.Len())) &^ 15

	words := []uint64{uint64(len(args))}
	for _, list := range [][]uint64{args, envs} {
		for _, off := range list {
			words = append(words, at+off)
		}
		words = append(words, 0)
	}
	for _, v := range [][2]uint64{
		{atSysinfoEhdr, amd64.SystemBase + amd64.VDSOOffset}, {atHwcap, 0}, {atPagesz, amd64.PageSize}, {atClktck, 100},
		{atPhdr, phdr}, {atPhent, phdrSize}, {atPhnum, uint64(phnum)}, {atBase, 0}, {atFlags, 0}, {atEntry, entry},
		{atUID, 0}, {atEUID, 0}, {atGID, 0}, {atEGID, 0}, {atSecure, 0},
		{atRandom, at + randomAt}, {atExecfn, at + execfn}, {atPlatform, at + platform}, {0, 0},
	} {
		words = append(words, v[0], v[1])
	}
	sp := (at - uint64(8*len(words))) &^ 15
	b := make([]byte, 0, 8*len(words))
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	if err := g.space.CopyOut(at, strings.Bytes()); err != nil {
		return 0, err
	}
	return sp, g.space.CopyOut(sp, b)
}
