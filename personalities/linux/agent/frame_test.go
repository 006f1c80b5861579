package agent

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFrameRoundTrip(t *testing.T) {
	var stream []byte
	sizes := []int{0, 1, 4095, MaxData, MaxPayload}
	for n, size := range sizes {
		f := Frame{FrameStdout, uint32(n), bytes.Repeat([]byte{byte(n)}, size)}
		stream = f.Append(stream)
	}
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(stream), "halves": iotest.HalfReader(bytes.NewReader(stream)),
		"bytes": iotest.OneByteReader(bytes.NewReader(stream))} {
		in := NewReader(r)
		for n, size := range sizes {
			f, err := in.Next()
			if err != nil || f.ID != uint32(n) || f.Type != FrameStdout || !bytes.Equal(f.Payload, bytes.Repeat([]byte{byte(n)}, size)) {
				t.Fatalf("%s: frame %d: %v, id %d, %d bytes", name, n, err, f.ID, len(f.Payload))
			}
		}
		if _, err := in.Next(); err != io.EOF {
			t.Errorf("%s: %v at the end", name, err)
		}
	}
}

func TestFrameDamaged(t *testing.T) {
	f := Frame{FrameExit, 7, []byte(`{"Code":3}`)}
	good := f.Append(nil)
	for n := range good {
		bad := bytes.Clone(good)
		bad[n] ^= 0x40
		// A length that grew makes the reader wait for more, and find the damage in what comes.
		_, err := NewReader(bytes.NewReader(append(bad, make([]byte, MaxPayload)...))).Next()
		if !errors.Is(err, ErrProtocol) && err != io.EOF {
			t.Errorf("byte %d damaged: %v", n, err)
		}
	}
	long := bytes.Clone(good)
	copy(long[8:], []byte{1, 0, 1, 0}) // MaxPayload+1
	if _, err := NewReader(bytes.NewReader(long)).Next(); !errors.Is(err, ErrProtocol) {
		t.Errorf("too long: %v", err)
	}
}

// Whatever stands before a hello, it is found, also behind a frame of which the rest never came.
func TestHelloFound(t *testing.T) {
	hello := Frame{Type: FrameHello, Payload: []byte(`{"Nonce":"me"}`)}
	cut := Frame{FrameStdin, 3, bytes.Repeat([]byte{magic[0]}, MaxPayload)}
	wrong := Frame{FrameHello, 3, nil}
	for name, before := range map[string][]byte{
		"nothing": nil, "noise": []byte("noise \xc7\xc7\x9a\x01"), "part of a frame": cut.Append(nil)[:MaxPayload/2],
		"a frame": cut.Append(nil), "no hello": wrong.Append(nil), "a long hello": {magic[0], magic[1], 1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4},
	} {
		f, err := NewReader(iotest.OneByteReader(bytes.NewReader(hello.Append(before)))).Hello()
		if err != nil || string(f.Payload) != string(hello.Payload) {
			t.Errorf("%s: %v, %q", name, err, f.Payload)
		}
	}
	// In the middle of a session, the padding before the second hello ends the wait.
	stream := cut.Append(nil)[:headerSize+10]
	stream = append(stream, make([]byte, headerSize+MaxPayload)...)
	in := NewReader(bytes.NewReader(hello.Append(stream)))
	if _, err := in.Next(); !errors.Is(err, ErrProtocol) {
		t.Errorf("a cut frame: %v", err)
	}
	if f, err := in.Hello(); err != nil || string(f.Payload) != string(hello.Payload) {
		t.Errorf("after a cut frame: %v", err)
	}
}

func TestStream(t *testing.T) {
	i := NewInbox()
	for range Window / MaxData {
		if err := i.Push(make([]byte, MaxData)); err != nil {
			t.Fatal(err)
		}
	}
	if err := i.Push([]byte{1}); !errors.Is(err, ErrProtocol) {
		t.Errorf("above the window: %v", err)
	}
	if b, ok := i.Pop(); !ok || len(b) != MaxData {
		t.Errorf("%d, %v", len(b), ok)
	}
	if err := i.Push(make([]byte, MaxData)); err != nil {
		t.Error(err)
	}
	if err := NewInbox().Push(make([]byte, MaxData+1)); !errors.Is(err, ErrProtocol) {
		t.Errorf("a long piece: %v", err)
	}
	i.Close()
	n := 0
	for b, ok := i.Pop(); ok; b, ok = i.Pop() {
		n += len(b)
	}
	if n != Window {
		t.Errorf("%d bytes after Close, expected %d", n, Window)
	}
	c := NewCredit()
	if err := c.Add(1); !errors.Is(err, ErrProtocol) {
		t.Errorf("more than a window: %v", err)
	}
	if n, ok := c.Take(Window + 1); !ok || n != Window {
		t.Errorf("%d, %v", n, ok)
	}
	if err := c.Add(1 << 31); !errors.Is(err, ErrProtocol) {
		t.Errorf("far more than a window: %v", err)
	}
	if err := c.Add(5); err != nil {
		t.Error(err)
	}
	if n, ok := c.Take(9); !ok || n != 5 {
		t.Errorf("%d, %v", n, ok)
	}
	c.Close()
	if _, ok := c.Take(1); ok {
		t.Error("taken from a closed window")
	}
}

func TestClean(t *testing.T) {
	if got := Clean("a\x1b[2Jb\nc\xff" + strings.Repeat("x", 5000)); strings.ContainsAny(got, "\x1b\n\xff") || len(got) > maxText {
		t.Errorf("%q", got)
	}
}

func TestConfigCheck(t *testing.T) {
	for want, c := range map[string]Config{
		"absolute": {Mounts: []Mount{{Target: "data"}}}, "20 characters": {Root: &Disk{Serial: strings.Repeat("s", 21)}},
		"must be ext4": {Root: &Disk{FileSystem: "vfat"}}, "no name": {Main: &Process{}}, "poweroff": {OnExit: "explode"},
		"overlay": {Mounts: []Mount{{Target: "/x", Disk: Disk{Overlay: true}}}},
	} {
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
	}
	if err := (&Config{Root: &Disk{Serial: "root", FileSystem: "ext4", Overlay: true}, OnExit: PowerOff}).Check(); err != nil {
		t.Error(err)
	}
}

// FuzzReader reads anything as frames, in pieces of any size: it neither panics nor hangs, and every frame that it accepts is one that
// Append would write.
func FuzzReader(f *testing.F) {
	hello := Frame{Type: FrameHello, Payload: []byte(`{}`)}
	out := Frame{FrameStdout, 9, []byte("text")}
	f.Add(out.Append(hello.Append(nil)), uint64(1))
	f.Add(hello.Append([]byte{magic[0], magic[1], 3, 0, 0, 0, 0, 0, 200, 0, 0, 0}), uint64(2))
	f.Add([]byte{}, uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := NewReader(&pieces{b, r})
		for {
			var fr Frame
			var err error
			if r.IntN(2) == 0 {
				fr, err = in.Hello()
			} else {
				fr, err = in.Next()
			}
			switch {
			case err == nil:
				if !bytes.Contains(b, fr.Append(nil)) {
					t.Fatalf("a frame that does not stand there: %+v", fr)
				}
			case errors.Is(err, ErrProtocol): // Hello goes on behind it
				if _, err := in.Hello(); err != nil {
					return
				}
			default:
				return
			}
		}
	})
}

// pieces gives its bytes in pieces of random size.
type pieces struct {
	b []byte
	r *rand.Rand
}

func (p *pieces) Read(to []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(to[:min(len(to), 1+p.r.IntN(64))], p.b)
	p.b = p.b[n:]
	return n, nil
}
