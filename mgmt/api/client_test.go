package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
)

// serve runs a handler on a socket.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skipf("socket path %s: %v", path, err)
	}
	s := &http.Server{Handler: h}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return NewClient(path)
}

func TestClientErrors(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/vms/a b/c":
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"not-found","error":"no such VM"}`)
		case "/v1/vms/gone":
			panic(http.ErrAbortHandler)
		case "/v1/vms/odd":
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "what?\n")
		case "/v1/vms/garbage":
			fmt.Fprint(w, "{")
		default:
			fmt.Fprint(w, `{"name":"x","state":"running"}`)
		}
	})
	ctx := context.Background()
	if v, err := c.VM(ctx, "x"); err != nil || v.Name != "x" || !v.State.Live() {
		t.Error(v, err)
	}
	// Names are data, not paths.
	if _, err := c.VM(ctx, "a b/c"); KindOf(err) != NotFound || err.Error() != "no such VM" || Down(err) {
		t.Error(err)
	}
	if _, err := c.VM(ctx, "gone"); !Down(err) || Absent(err) {
		t.Errorf("broken connection: %v", err)
	}
	if _, err := c.VM(ctx, "odd"); KindOf(err) != Internal || !strings.Contains(err.Error(), "what?") || Down(err) {
		t.Error(err)
	}
	if _, err := c.VM(ctx, "garbage"); err == nil || Down(err) {
		t.Error(err)
	}
	none := NewClient(filepath.Join(t.TempDir(), "none"))
	if _, err := none.Version(ctx); !Down(err) || !Absent(err) {
		t.Errorf("no socket: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.VM(cancelled, "x"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestChecks(t *testing.T) {
	for _, n := range []uint64{MinMemory, MinMemory + MemoryUnit, 1 << 40} {
		if err := CheckMemory(n, MinMemory); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []uint64{0, 1, MinMemory - MemoryUnit, MinMemory + 1, math.MaxUint64} {
		if err := CheckMemory(n, MinMemory); KindOf(err) != Invalid {
			t.Errorf("%d: %v", n, err)
		}
	}
	for _, c := range []float64{0, MinCPU, 1, 2.5, MaxCPU} {
		if err := CheckCPU(c); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []float64{-1, MinCPU / 2, MaxCPU + 1, math.NaN(), math.Inf(1), math.Inf(-1)} {
		if err := CheckCPU(c); KindOf(err) != Invalid {
			t.Errorf("%g: %v", c, err)
		}
	}
}

// TestDownWhenClosedIdle: a graild that dies between accepting a connection and reading a request is down, however net/http words that.
func TestDownWhenClosedIdle(t *testing.T) {
	err := &url.Error{Op: "Get", URL: "http://graild/v1/version", Err: errors.New("http: server closed idle connection")}
	if !Down(err) {
		t.Errorf("%v is not taken for a graild that is gone", err)
	}
	if Down(&Error{Kind: Internal, Message: "an answer"}) {
		t.Error("an answer is taken for a graild that is gone")
	}
}
