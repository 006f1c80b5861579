package size

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "1": 1, "4096": 4096, "64M": 64 << 20, "64m": 64 << 20, "64MB": 64 << 20, "64MiB": 64 << 20, "1G": 1 << 30,
		"2K": 2048, "1T": 1 << 40, " 8M ": 8 << 20, "512B": 512, "8388607T": 8388607 << 40,
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", " ", "-1", "-64M", "M", "64X", "64MM", "1.5G", "0x10", "64iB", "99999999999999999999", "8388608T", "1e3", "64 M", "+1"} {
		got, err := Parse(s)
		if err == nil {
			t.Errorf("%q: %d, want an error", s, got)
		} else if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "64M") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 1: "1", 1024: "1K", 1536: "1536", 64 << 20: "64M", 1 << 30: "1G", 3 << 40: "3T", 1 << 60: "1048576T"} {
		if got := Format(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
		if back, err := Parse(want); err != nil || back != n {
			t.Errorf("%s: %d, %v", want, back, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("64M")
	f.Add("18446744073709551615T")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		if back, err := Parse(Format(n)); err != nil || back != n {
			t.Errorf("%q is %d, which is written %s and read as %d, %v", s, n, Format(n), back, err)
		}
	})
}
