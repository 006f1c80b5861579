package trace

import (
	"cmp"
	"debug/elf"
	"debug/gosym"
	"fmt"
	"io"
	"slices"

	"github.com/grailos/grail/arch/disasm"
	"github.com/grailos/grail/mgmt/api"
)

// Program holds the names of a guest program's code. A nil Program knows none.
type Program struct {
	table *gosym.Table // of a Go program, also of a stripped one
	syms  []elf.Symbol // functions by address, of any other
}

// maxTable bounds the line table and the symbols that are read, in bytes.
const maxTable = 256 << 20

// Open reads the names from an ELF program. It is the guest's and may be malformed.
func Open(r io.ReaderAt) (p *Program, err error) {
	// debug/elf and debug/gosym are made for well-formed input and do not promise not to panic on other.
	defer func() {
		if v := recover(); v != nil {
			p, err = nil, fmt.Errorf("trace: malformed program: %v", v)
		}
	}()
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	defer f.Close()
	p = &Program{}
	if s, text := f.Section(".gopclntab"), f.Section(".text"); s != nil && text != nil && s.Size <= maxTable {
		data, err := s.Data()
		if err != nil {
			return nil, fmt.Errorf("trace: line table: %w", err)
		}
		if p.table, err = gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr)); err != nil {
			return nil, fmt.Errorf("trace: line table: %w", err)
		}
		return p, nil
	}
	if s := f.Section(".symtab"); s == nil || s.Size > maxTable {
		return p, nil
	}
	syms, err := f.Symbols()
	if err != nil {
		return nil, fmt.Errorf("trace: symbols: %w", err)
	}
	for _, s := range syms {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			p.syms = append(p.syms, s)
		}
	}
	slices.SortFunc(p.syms, func(a, b elf.Symbol) int { return cmp.Compare(a.Value, b.Value) })
	return p, nil
}

// frame names the code at addr; pc is the address that is shown for it.
func (p *Program) frame(pc, addr, bias uint64) (fr api.Frame) {
	fr = api.Frame{PC: pc}
	if p == nil {
		return fr
	}
	defer func() {
		if recover() != nil {
			fr = api.Frame{PC: pc}
		}
	}()
	if p.table != nil {
		if file, line, fn := p.table.PCToLine(addr - bias); fn != nil {
			fr.Func, fr.File, fr.Line = fn.Name, file, line
		}
		return fr
	}
	fr.Func, _ = p.lookup(addr - bias)
	return fr
}

// Name says in which function addr lies, and how far from its start; empty where that is not known.
func (p *Program) Name(addr, bias uint64) string {
	symbol := p.symbol(bias)
	if symbol == nil {
		return ""
	}
	name, start := symbol(addr)
	if name == "" {
		return ""
	}
	return fmt.Sprintf("%s+%#x", name, addr-start)
}

// symbol returns the names for the disassembler.
func (p *Program) symbol(bias uint64) disasm.Symbol {
	if p == nil {
		return nil
	}
	return func(addr uint64) (name string, start uint64) {
		defer func() {
			if recover() != nil {
				name, start = "", 0
			}
		}()
		if p.table != nil {
			if fn := p.table.PCToFunc(addr - bias); fn != nil {
				return fn.Name, fn.Entry + bias
			}
			return "", 0
		}
		name, start = p.lookup(addr - bias)
		return name, start + bias
	}
}

// lookup finds the symbol that holds addr.
func (p *Program) lookup(addr uint64) (string, uint64) {
	i, found := slices.BinarySearchFunc(p.syms, addr, func(s elf.Symbol, a uint64) int { return cmp.Compare(s.Value, a) })
	if !found {
		i--
	}
	if i < 0 || addr-p.syms[i].Value >= max(p.syms[i].Size, 1) {
		return "", 0
	}
	return p.syms[i].Name, p.syms[i].Value
}
