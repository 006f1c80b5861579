package native

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// ErrProgram is wrapped by every error that says that a file is not a program for a native guest.
var ErrProgram = errors.New("not a program that Grail can run")

// howStatic is what to do about most wrong programs.
const howStatic = "build it with CGO_ENABLED=0 (Go), or musl-gcc -static (C), or --target x86_64-unknown-linux-musl (Rust)"

// CheckPath opens the program at path and checks it. The caller closes the file; nothing is open after an
// error. Errors: as Check; those of open(2).
func CheckPath(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := Check(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Check returns nil when f is a static x86-64 Linux program. It reads headers only, and does not move the
// file offset. Errors wrap ErrProgram and are one line: what was wrong, what was expected, what to do.
func Check(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	bad := func(wrong, expected, do string) error {
		return fmt.Errorf("%s: %w: %s; expected %s; %s", f.Name(), ErrProgram, wrong, expected, do)
	}
	const want = "a static x86-64 ELF program"
	switch {
	case st.IsDir():
		return bad("it is a directory", want, "name the program file itself")
	case !st.Mode().IsRegular():
		return bad("it is no regular file", want, "name the program file itself")
	case st.Size() == 0:
		return bad("it is empty", want, "check that the build that makes it succeeded")
	}
	var h [64]byte
	n, err := f.ReadAt(h[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	switch {
	case n >= 2 && h[0] == '#' && h[1] == '!':
		return bad("it is a script", want, "run its interpreter, built statically, with the script in --files")
	case n >= 2 && h[0] == 'M' && h[1] == 'Z':
		return bad("it is a Windows program", want, "build it for Linux: "+howStatic)
	case n < 4 || string(h[:4]) != elf.ELFMAG:
		return bad("it is no ELF file", want, howStatic)
	case n < 20:
		return bad("it is cut off", want, "check that it was copied completely")
	case elf.Class(h[elf.EI_CLASS]) == elf.ELFCLASS32:
		return bad("it is a 32-bit program", want, "build it for GOARCH=amd64, or without -m32")
	case elf.Data(h[elf.EI_DATA]) != elf.ELFDATA2LSB:
		return bad("it is a big-endian program", want, "build it for GOARCH=amd64")
	}
	if m := elf.Machine(binary.LittleEndian.Uint16(h[18:])); m != elf.EM_X86_64 {
		return bad("it is a program for "+machineName(m), want, "build it for GOARCH=amd64")
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return bad("its ELF headers are damaged ("+err.Error()+")", want, "build or copy it again")
	}
	switch e.Type {
	case elf.ET_EXEC, elf.ET_DYN:
	case elf.ET_REL:
		return bad("it is an object file", want, "link it")
	case elf.ET_CORE:
		return bad("it is a core dump", want, "name the program that dumped it")
	default:
		return bad("it is an ELF file of type "+e.Type.String(), want, howStatic)
	}
	loads := 0
	for _, p := range e.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			return bad("it is dynamically linked", want, howStatic)
		case elf.PT_LOAD:
			loads++
			if p.Filesz > p.Memsz || p.Off > uint64(st.Size()) || p.Filesz > uint64(st.Size())-p.Off {
				return bad("it is cut off: a segment reaches beyond its end", want, "build or copy it again")
			}
		}
	}
	if loads == 0 {
		return bad("it has nothing to load", want, "link it")
	}
	if e.Type == elf.ET_DYN && !selfContained(e) {
		return bad("it is a shared library, or needs some", want, howStatic)
	}
	if e.Entry == 0 {
		return bad("it has no entry point: it may be a shared library", want, howStatic)
	}
	return nil
}

// selfContained reports whether a position-independent file needs no library.
func selfContained(e *elf.File) bool {
	libs, err := e.ImportedLibraries()
	return err != nil || len(libs) == 0
}

func machineName(m elf.Machine) string {
	switch m {
	case elf.EM_386:
		return "32-bit x86"
	case elf.EM_AARCH64:
		return "arm64"
	case elf.EM_ARM:
		return "32-bit ARM"
	case elf.EM_RISCV:
		return "RISC-V"
	case elf.EM_IA_64:
		return "Itanium"
	}
	return m.String()
}
