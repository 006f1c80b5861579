package disasm

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/arch/arm64/arm64asm"
	"golang.org/x/arch/x86/x86asm"
)

// Machine is an instruction set.
type Machine string

// The instruction sets that can be decoded, by Go's names.
const (
	AMD64 Machine = "amd64"
	ARM64 Machine = "arm64"
)

// MaxInst is the length of the longest instruction of any Machine, in bytes.
const MaxInst = 15

// ErrUnknown reports bytes that the decoder does not know. It says nothing about whether a processor would.
var ErrUnknown = errors.New("disasm: unknown instruction")

// Symbol names the symbol that holds an address, and its start; an empty name means none.
type Symbol func(addr uint64) (name string, start uint64)

// Inst is one decoded instruction.
type Inst struct {
	Text  string // in the syntax of the Go assembler
	Bytes []byte // part of the code given to Decode
}

// String returns the bytes in hexadecimal and the text.
func (i Inst) String() string { return fmt.Sprintf("% x  %s", i.Bytes, i.Text) }

// Decode decodes the first instruction of code, which stands at address pc. The code may be anything; sym may
// be nil. Errors: ErrUnknown, also when code is shorter than the instruction.
func Decode(m Machine, code []byte, pc uint64, sym Symbol) (inst Inst, err error) {
	// The decoders promise no panic but are not ours, and the bytes are the guest's.
	defer func() {
		if p := recover(); p != nil {
			inst, err = Inst{}, fmt.Errorf("%w: decoder failed: %v", ErrUnknown, p)
		}
	}()
	if sym == nil {
		sym = func(uint64) (string, uint64) { return "", 0 }
	}
	switch m {
	case AMD64:
		return decodeAMD64(code, pc, sym)
	case ARM64:
		return decodeARM64(code, pc, sym)
	}
	return Inst{}, fmt.Errorf("disasm: no decoder for %q", m)
}

func decodeAMD64(code []byte, pc uint64, sym Symbol) (Inst, error) {
	if len(code) > MaxInst {
		code = code[:MaxInst]
	}
	if text := endbr(code); text != "" {
		return Inst{Text: text, Bytes: code[:4]}, nil
	}
	in, err := x86asm.Decode(code, 64)
	if err != nil {
		return Inst{}, fmt.Errorf("%w: % x: %w", ErrUnknown, code, err)
	}
	// Instructions newer than the decoder's tables come back without an operation and without an error.
	if in.Op == 0 || in.Len <= 0 || in.Len > len(code) {
		return Inst{}, fmt.Errorf("%w: % x", ErrUnknown, code)
	}
	return Inst{Text: strings.TrimSpace(x86asm.GoSyntax(in, pc, x86asm.SymLookup(sym))), Bytes: code[:in.Len]}, nil
}

// endbr names the landing pads of control-flow enforcement, which C programs are full of and the decoder lacks
// (Intel SDM volume 2, ENDBR64 and ENDBR32).
func endbr(code []byte) string {
	if len(code) < 4 || code[0] != 0xf3 || code[1] != 0x0f || code[2] != 0x1e {
		return ""
	}
	switch code[3] {
	case 0xfa:
		return "ENDBR64"
	case 0xfb:
		return "ENDBR32"
	}
	return ""
}

func decodeARM64(code []byte, pc uint64, sym Symbol) (Inst, error) {
	const size = 4
	if len(code) < size {
		return Inst{}, fmt.Errorf("%w: % x is too short", ErrUnknown, code)
	}
	in, err := arm64asm.Decode(code)
	if err != nil {
		return Inst{}, fmt.Errorf("%w: % x: %w", ErrUnknown, code[:size], err)
	}
	if in.Op == 0 {
		return Inst{}, fmt.Errorf("%w: % x", ErrUnknown, code[:size])
	}
	return Inst{Text: strings.TrimSpace(arm64asm.GoSyntax(in, pc, sym, nil)), Bytes: code[:size]}, nil
}
