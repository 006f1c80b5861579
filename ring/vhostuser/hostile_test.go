package vhostuser_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/grailos/grail/ring"
	"github.com/grailos/grail/ring/ringtest"
	"github.com/grailos/grail/ring/vhostuser"
	"golang.org/x/sys/unix"
)

// pair returns both ends of a connection.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var c [2]*net.UnixConn
	for i, fd := range fds {
		conn, err := fileConn(fd)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		c[i] = conn
		t.Cleanup(func() { conn.Close() })
	}
	return c[0], c[1]
}

// message makes the wire form of a message.
func message(req vhostuser.Request, flags uint32, payload ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(req))
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// TestHostileFrontend sends what no front end should, over a real socket.
func TestHostileFrontend(t *testing.T) {
	huge := message(vhostuser.SetFeatures, 1)
	binary.LittleEndian.PutUint32(huge[8:], 0xffffffff)
	features := message(vhostuser.GetFeatures, 1)
	many := make([]int, 30)
	for name, c := range map[string]struct {
		bytes []byte
		fds   int
		want  error
	}{
		"nothing":                        {nil, 0, nil},
		"half a header":                  {features[:6], 0, io.ErrUnexpectedEOF},
		"half a payload":                 {message(vhostuser.SetFeatures, 1, make([]byte, 8)...)[:15], 0, io.ErrUnexpectedEOF},
		"header without its payload":     {message(vhostuser.SetFeatures, 1, make([]byte, 8)...)[:12], 0, io.ErrUnexpectedEOF},
		"payload of 4 GiB":               {huge, 0, vhostuser.ErrMessage},
		"version 0":                      {message(vhostuser.GetFeatures, 0), 0, vhostuser.ErrMessage},
		"version 2":                      {message(vhostuser.GetFeatures, 2), 0, vhostuser.ErrMessage},
		"another protocol":               {[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), 0, vhostuser.ErrMessage},
		"descriptor with GET_FEATURES":   {features, 1, vhostuser.ErrMessage},
		"30 descriptors":                 {features, 30, vhostuser.ErrMessage},
		"descriptors with half a header": {features[:6], 3, io.ErrUnexpectedEOF},
		"descriptors with huge payload":  {huge, 8, vhostuser.ErrMessage},
	} {
		t.Run(name, func(t *testing.T) {
			checkFDs(t)
			a, b := pair(t)
			h := &ringtest.BlkServer{Disk: tempDisk(t), Sectors: diskSectors}
			result := make(chan error, 1)
			go func() { result <- vhostuser.NewBackend(b, h).Serve(context.Background()) }()
			var oob []byte
			if c.fds > 0 {
				bell, err := ring.NewDoorbell()
				if err != nil {
					t.Fatal(err)
				}
				defer bell.Close()
				for i := range c.fds {
					many[i] = bell.FD()
				}
				oob = unix.UnixRights(many[:c.fds]...)
			}
			if len(c.bytes) > 0 {
				if _, _, err := a.WriteMsgUnix(c.bytes, oob, nil); err != nil {
					t.Fatal(err)
				}
			}
			a.CloseWrite()
			if err := <-result; !errors.Is(err, c.want) {
				t.Fatalf("session ended with %v, want %v", err, c.want)
			}
		})
	}
}

// TestGarbage throws random bytes and descriptors at a back end, many times.
func TestGarbage(t *testing.T) {
	checkFDs(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	bell, err := ring.NewDoorbell()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	disk := tempDisk(t)
	for range 300 {
		a, b := pair(t)
		h := &ringtest.BlkServer{Disk: disk, Sectors: diskSectors}
		result := make(chan error, 1)
		go func() { result <- vhostuser.NewBackend(b, h).Serve(context.Background()) }()
		go io.Copy(io.Discard, a)
		for range 20 {
			payload := make([]byte, rng.IntN(48))
			for i := range payload {
				if rng.IntN(2) == 0 {
					payload[i] = byte(rng.Uint32())
				}
			}
			m := message(vhostuser.Request(rng.IntN(42)), 1|uint32(rng.IntN(2))<<3, payload...)
			if rng.IntN(10) == 0 {
				m[rng.IntN(len(m))] ^= 1 << rng.IntN(8)
			}
			var oob []byte
			if n := rng.IntN(3); n > 0 {
				oob = unix.UnixRights([]int{bell.FD(), bell.FD()}[:n]...)
			}
			if _, _, err := a.WriteMsgUnix(m, oob, nil); err != nil {
				break
			}
		}
		a.CloseWrite()
		if err := <-result; err != nil && !errors.Is(err, vhostuser.ErrMessage) && !errors.Is(err, io.ErrUnexpectedEOF) {
			// A refused request ends a session that did not negotiate answers.
			t.Logf("session ended: %v", err)
		}
		a.Close()
	}
}

// TestServeCancelled ends a session from our side while a queue runs.
func TestServeCancelled(t *testing.T) {
	checkFDs(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	h := &ringtest.BlkServer{Disk: tempDisk(t), Sectors: diskSectors}
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = vhostuser.NewBackend(c.(*net.UnixConn), h).Serve(ctx)
		}
		result <- err
	}()
	f := dial(t, path, vhostuser.Options{Features: allFeatures})
	c := client(t, 16, 4, 0)
	if err := c.Attach(f, 0); err != nil {
		t.Fatal(err)
	}
	newWorkload(t, c, 4, diskBlocks).run(10)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !f.Disconnected() {
		t.Error("front end does not notice")
	}
	if _, err := f.Stop(0); err == nil {
		t.Error("request over a dead connection succeeded")
	}
}

// TestHostileBackend gives a front end answers that no back end should.
func TestHostileBackend(t *testing.T) {
	u64 := make([]byte, 8)
	for name, answer := range map[string]func(c *net.UnixConn){
		"closes":            func(c *net.UnixConn) { c.Close() },
		"half an answer":    func(c *net.UnixConn) { c.Write(message(vhostuser.GetFeatures, 5, u64...)[:15]); c.Close() },
		"another request":   func(c *net.UnixConn) { c.Write(message(vhostuser.GetQueueNum, 5, u64...)) },
		"no reply flag":     func(c *net.UnixConn) { c.Write(message(vhostuser.GetFeatures, 1, u64...)) },
		"short payload":     func(c *net.UnixConn) { c.Write(message(vhostuser.GetFeatures, 5, 1, 2, 3)) },
		"payload too large": func(c *net.UnixConn) { c.Write(message(vhostuser.GetFeatures, 5, make([]byte, 2000)...)) },
		"a descriptor": func(c *net.UnixConn) {
			bell, _ := ring.NewDoorbell()
			c.WriteMsgUnix(message(vhostuser.GetFeatures, 5, u64...), unix.UnixRights(bell.FD()), nil)
			bell.Close()
		},
		"silence": func(*net.UnixConn) {},
	} {
		t.Run(name, func(t *testing.T) {
			checkFDs(t)
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			defer func() { <-done }()
			go func() {
				defer close(done)
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				c.Read(make([]byte, 64))
				answer(c.(*net.UnixConn))
				c.Read(make([]byte, 64)) // until the front end gives up
			}()
			f, err := vhostuser.Dial(context.Background(), path, vhostuser.Options{Timeout: 100 * time.Millisecond})
			if err == nil {
				f.Close()
				t.Fatal("front end is content")
			}
			t.Log(err)
		})
	}
}

// TestReconnectRefusesLess: a new back end must offer what the driver already relies on.
func TestReconnectRefusesLess(t *testing.T) {
	h := &ringtest.BlkServer{Disk: tempDisk(t), Sectors: diskSectors}
	path := serve(t, fewer{h, ring.FeatureEventIdx}, vhostuser.ErrMessage)
	full := serve(t, h)
	f := dial(t, full, vhostuser.Options{Features: allFeatures})
	if f.Features()&ring.FeatureEventIdx == 0 {
		t.Fatal("not offered")
	}
	f.Redirect(path)
	err := f.Reconnect(context.Background(), nil)
	if !errors.Is(err, vhostuser.ErrRejected) {
		t.Fatalf("reconnected: %v", err)
	}
	f.Redirect(full)
	if err := f.Reconnect(context.Background(), nil); err != nil {
		t.Fatalf("back to the first: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	f.Redirect(filepath.Join(t.TempDir(), "nobody"))
	if err := f.Reconnect(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody there: %v", err)
	}
}

// fewer is a handler that offers less.
type fewer struct {
	*ringtest.BlkServer
	without uint64
}

func (f fewer) Features() uint64 { return f.BlkServer.Features() &^ f.without }
