// Package size reads and writes amounts of memory as people do: 64M, 1G.
package size

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// units are the suffixes, each 1,024 times the one before.
const units = "KMGT"

// Parse reads a number of bytes: digits, and K, M, G or T for powers of 1,024, which may be followed by B or iB. Errors
// are one line for the person who typed it.
func Parse(s string) (uint64, error) {
	bad := func(why string) (uint64, error) {
		return 0, fmt.Errorf("size %q %s; use a whole number with K, M, G or T, for instance 64M or 1G", s, why)
	}
	t := strings.TrimSpace(s)
	if t == "" {
		return 0, fmt.Errorf("the size is empty; use a whole number with K, M, G or T, for instance 64M or 1G")
	}
	if t[0] == '-' {
		return bad("is negative")
	}
	end := strings.IndexFunc(t, func(r rune) bool { return r < '0' || r > '9' })
	digits, suffix := t, ""
	if end >= 0 {
		digits, suffix = t[:end], strings.ToUpper(t[end:])
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return bad("is not a size")
	}
	shift := 0
	if i := strings.IndexByte(units, first(suffix)); suffix != "" && i >= 0 {
		shift = 10 * (i + 1)
		suffix = suffix[1:]
		if suffix == "IB" {
			suffix = ""
		}
	}
	if suffix != "" && suffix != "B" {
		return bad("is not a size")
	}
	if n != 0 && bits.Len64(n)+shift > 63 {
		return bad("is too large")
	}
	return n << shift, nil
}

func first(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}

// Format writes n with the largest unit that divides it.
func Format(n uint64) string {
	unit := -1
	for unit < len(units)-1 && n != 0 && n%1024 == 0 {
		n /= 1024
		unit++
	}
	if unit < 0 {
		return strconv.FormatUint(n, 10)
	}
	return strconv.FormatUint(n, 10) + units[unit:unit+1]
}
