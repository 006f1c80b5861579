package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
)

// Bounds of the protocol, in bytes.
const (
	// MaxPayload is the size of the largest frame's content.
	MaxPayload = 64 << 10
	// MaxData is the most that one frame carries of a program's stream.
	MaxData = 32 << 10
	// Window is how much of a stream may be under way: sent, and not yet taken by its reader.
	Window = 256 << 10

	headerSize = 16
	maxHello   = 4 << 10 // content of a hello
)

// ErrProtocol reports a peer that broke the protocol. The connection is of no more use.
var ErrProtocol = errors.New("agent: the peer broke the protocol")

// magic begins every frame.
var magic = []byte{0xc7, 0x9a}

// FrameType says what a frame is about.
type FrameType uint8

// The types of frames. A frame's ID is that of the program or the call, and 0 in a hello.
const (
	FrameHello  FrameType = iota + 1 // both ways: Hello
	FrameExec                        // to the guest: Exec
	FrameStdin                       // to the guest: bytes; none: the end
	FrameStdout                      // to the host: bytes
	FrameStderr                      // to the host: bytes
	FrameCredit                      // both ways: a stream's FrameType and, in 4 bytes, by how many bytes its window is renewed
	FrameResize                      // to the guest: Size
	FrameSignal                      // to the guest: a signal's number in one byte
	FrameExit                        // to the host, the last of a program: Exit
	FrameCall                        // to the guest: Call
	FrameReply                       // to the host: Reply
	frameEnd
)

// Frame is one message.
type Frame struct {
	Type    FrameType
	ID      uint32
	Payload []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append appends the frame's bytes to b: the magic, the type, a zero byte; ID, length and checksum (CRC-32C of all else), 4 bytes
// little-endian each; the payload. A payload above MaxPayload panics: it is ours.
func (f *Frame) Append(b []byte) []byte {
	if len(f.Payload) > MaxPayload {
		panic(fmt.Sprintf("agent: payload of %d bytes", len(f.Payload)))
	}
	start := len(b)
	b = append(b, magic[0], magic[1], byte(f.Type), 0)
	b = binary.LittleEndian.AppendUint32(b, f.ID)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Payload)))
	sum := crc32.Update(crc32.Checksum(b[start:], castagnoli), castagnoli, f.Payload)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, f.Payload...)
}

// errShort says that a frame is good as far as it has arrived.
var errShort = errors.New("agent: more bytes needed")

// parse takes a frame from the beginning of b, whose bytes its payload shares. Errors: errShort, ErrProtocol.
func parse(b []byte, max int) (f Frame, size int, err error) {
	if len(b) < headerSize {
		if !bytes.HasPrefix(magic, b[:min(len(b), 2)]) && !bytes.HasPrefix(b, magic) {
			return f, 0, fmt.Errorf("%w: bad magic number", ErrProtocol)
		}
		return f, 0, errShort
	}
	f = Frame{Type: FrameType(b[2]), ID: binary.LittleEndian.Uint32(b[4:])}
	n := binary.LittleEndian.Uint32(b[8:])
	switch {
	case !bytes.HasPrefix(b, magic) || b[3] != 0:
		return f, 0, fmt.Errorf("%w: bad magic number", ErrProtocol)
	case f.Type == 0 || f.Type >= frameEnd:
		return f, 0, fmt.Errorf("%w: frame of type %d", ErrProtocol, f.Type)
	case n > uint32(max):
		return f, 0, fmt.Errorf("%w: frame of %d bytes", ErrProtocol, n)
	}
	size = headerSize + int(n)
	if len(b) < size {
		return f, 0, errShort
	}
	f.Payload = b[headerSize:size:size]
	sum := crc32.Update(crc32.Checksum(b[:12], castagnoli), castagnoli, f.Payload)
	if sum != binary.LittleEndian.Uint32(b[12:]) {
		return f, 0, fmt.Errorf("%w: bad checksum", ErrProtocol)
	}
	return f, size, nil
}

// Reader takes frames from a stream. One goroutine may use it.
type Reader struct {
	r          io.Reader
	buf        []byte
	start, end int // what has arrived and is not taken
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: r, buf: make([]byte, 2*(headerSize+MaxPayload))}
}

// Next returns the next frame, whose payload is good until the next call. Errors: ErrProtocol, and those of the stream.
func (r *Reader) Next() (Frame, error) {
	for {
		f, size, err := parse(r.buf[r.start:r.end], MaxPayload)
		if err == nil {
			r.start += size
			return f, nil
		}
		if err != errShort {
			return Frame{}, err
		}
		if err := r.fill(); err != nil {
			return Frame{}, err
		}
	}
}

// Hello skips everything up to the next hello, whatever it is, and returns that.
func (r *Reader) Hello() (Frame, error) {
	for {
		have := r.buf[r.start:r.end]
		f, size, err := parse(have, maxHello)
		switch {
		case err == nil && f.Type == FrameHello && f.ID == 0:
			r.start += size
			return f, nil
		case err == errShort && (len(have) < headerSize || FrameType(have[2]) == FrameHello):
			if err := r.fill(); err != nil {
				return Frame{}, err
			}
		default:
			r.start++
			if n := bytes.IndexByte(r.buf[r.start:r.end], magic[0]); n >= 0 {
				r.start += n
			} else {
				r.start = r.end
			}
		}
	}
}

// Discard forgets what has arrived.
func (r *Reader) Discard() { r.start, r.end = 0, 0 }

// fill reads more. The buffer holds two of the largest frames, so there is room after moving.
func (r *Reader) fill() error {
	if r.start > 0 && r.end > len(r.buf)/2 || r.start == r.end {
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	}
	n, err := r.r.Read(r.buf[r.end:])
	if n < 0 || n > len(r.buf)-r.end {
		return errors.New("agent: a reader returned an impossible count")
	}
	r.end += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Writer puts frames on a stream, each whole. Any goroutine may use it.
type Writer struct {
	s       *sink
	stopped atomic.Pointer[error]
}

// sink is a stream that Writers share.
type sink struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{s: &sink{w: w}} }

// Fork returns another Writer on the same stream, which is stopped by itself.
func (w *Writer) Fork() *Writer { return &Writer{s: w.s} }

// Send writes a frame. After an error of the stream nothing more is written, as the peer would find half a frame.
func (w *Writer) Send(f Frame) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if err := w.stopped.Load(); err != nil {
		return *err
	}
	if w.s.err != nil {
		return w.s.err
	}
	w.s.buf = f.Append(w.s.buf[:0])
	_, w.s.err = w.s.w.Write(w.s.buf)
	return w.s.err
}

// Stop makes every Send that has not begun to write fail with err. It does not wait.
func (w *Writer) Stop(err error) { w.stopped.CompareAndSwap(nil, &err) }
