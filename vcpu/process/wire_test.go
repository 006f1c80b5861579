//go:build linux && amd64

package process

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"reflect"
	"testing"

	"golang.org/x/net/bpf"
)

func TestSpecTravels(t *testing.T) {
	want := &childSpec{Argv: [][]byte{[]byte("a\xff\xfe"), {}}, Env: [][]byte{[]byte("K=V")}, Filter: []bpf.RawInstruction{{Op: 6, Jt: 1, Jf: 2, K: 1 << 31}},
		Killable: true, Jailed: true, ID: 7, KeepIDs: true, Limits: []limit{{1, ^uint64(0)}}}
	var b bytes.Buffer
	if err := writeSpec(&b, want); err != nil {
		t.Fatal(err)
	}
	if got, err := readSpec(&b); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if err := writeSpec(io.Discard, &childSpec{Argv: [][]byte{make([]byte, maxSpec)}}); err == nil {
		t.Error("an enormous specification was written")
	}
}

func FuzzReadSpec(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Add([]byte("\x10\x00\x00\x00{\"Argv\":[\"YQ==\"]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := readSpec(bytes.NewReader(b)); err == nil && s == nil {
			t.Error("neither specification nor error")
		}
	})
}

func FuzzCheckELF(f *testing.F) {
	program, err := trialProgram()
	if err != nil {
		f.Fatal(err)
	}
	image, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", program.Fd()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image)
	for _, at := range []int{16, 18, 32, 54, 56, 64} {
		bad := bytes.Clone(image)
		binary.LittleEndian.PutUint16(bad[at:], 0xffff)
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkELF(bytes.NewReader(b)) == nil && (len(b) < 64 || string(b[:4]) != elfMagic) {
			t.Error("not an ELF file")
		}
	})
}

func FuzzStatusField(f *testing.F) {
	f.Add([]byte("Name:\tx\nThreads:\t12\nSigCgt:\tffff\n"), "Threads:")
	f.Add([]byte("Threads:"), "Threads:")
	f.Add([]byte("Threads:\t-1"), "Threads:")
	f.Fuzz(func(t *testing.T, b []byte, key string) {
		if v, ok := statusField(b, key, 10); !ok && v != 0 && v != ^uint64(0) {
			t.Errorf("%d without ok", v)
		}
	})
}
