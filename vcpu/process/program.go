//go:build linux && amd64

package process

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrProgram reports a file that this engine cannot run.
var ErrProgram = errors.New("process: not a static x86-64 ELF program")

// maxHeaders bounds the program headers that are looked at; the kernel takes one page of them.
const maxHeaders = 73

// checkELF tells the common mistakes apart, which execve does not.
func checkELF(f io.ReaderAt) error {
	raw := make([]byte, binary.Size(elf.Header64{}))
	if _, err := f.ReadAt(raw, 0); err != nil {
		return fmt.Errorf("%w: too short or unreadable: %w", ErrProgram, err)
	}
	var h elf.Header64
	if err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, &h); err != nil {
		return err
	}
	switch {
	case string(h.Ident[:4]) != elf.ELFMAG:
		return fmt.Errorf("%w: no ELF header", ErrProgram)
	case elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Machine(h.Machine) != elf.EM_X86_64:
		return fmt.Errorf("%w: it is %v for %v", ErrProgram, elf.Class(h.Ident[elf.EI_CLASS]), elf.Machine(h.Machine))
	case elf.Type(h.Type) != elf.ET_EXEC && elf.Type(h.Type) != elf.ET_DYN:
		return fmt.Errorf("%w: it is of type %v", ErrProgram, elf.Type(h.Type))
	case h.Phnum == 0 || h.Phnum > maxHeaders || int(h.Phentsize) != binary.Size(elf.Prog64{}):
		return fmt.Errorf("%w: %d program headers of %d bytes", ErrProgram, h.Phnum, h.Phentsize)
	}
	progs := make([]elf.Prog64, h.Phnum)
	section := io.NewSectionReader(f, int64(h.Phoff), int64(binary.Size(progs)))
	if int64(h.Phoff) < 0 {
		return fmt.Errorf("%w: program headers at %#x", ErrProgram, h.Phoff)
	}
	if err := binary.Read(section, binary.LittleEndian, progs); err != nil {
		return fmt.Errorf("%w: program headers: %w", ErrProgram, err)
	}
	for _, p := range progs {
		if elf.ProgType(p.Type) == elf.PT_INTERP {
			return fmt.Errorf("%w: it is dynamically linked; build with CGO_ENABLED=0, or with -static", ErrProgram)
		}
	}
	return nil
}

// executable returns a descriptor of the program that the jailed user may execute: f's own when everybody may
// read and execute it, else of a sealed copy in memory.
func executable(f *os.File) (*os.File, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, err
	}
	const all = 0o555
	if fi.Mode().Perm()&all == all && fs.Flags&unix.MS_NOEXEC == 0 && readOnly(f) {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), f.Name()), nil
	}
	const execAllowed = 0x10 // MFD_EXEC, Linux 6.3
	fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|execAllowed)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("process: copying the program: %w", err)
	}
	out := os.NewFile(uintptr(fd), f.Name())
	if _, err := io.Copy(out, io.NewSectionReader(f, 0, fi.Size())); err != nil {
		out.Close()
		return nil, fmt.Errorf("process: copying the program: %w", err)
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(out.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		out.Close()
		return nil, fmt.Errorf("process: sealing the program: %w", err)
	}
	return out, nil
}

// readOnly reports whether f cannot be written through: a file open for writing is not executed (ETXTBSY), except one in
// memory.
func readOnly(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return true
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	return err == nil
}
