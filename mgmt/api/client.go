package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/place"
)

// Client speaks with one graild.
type Client struct {
	http *http.Client
}

// NewClient returns a client of the graild whose API socket is at path. It connects when it is used.
func NewClient(path string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			var conn net.Conn
			err := place.WithSocket(path, func(short string) (err error) {
				conn, err = d.DialContext(ctx, "unix", short)
				return err
			})
			return conn, err
		},
		// A graild that was replaced must not be met on an old connection.
		DisableKeepAlives: true,
	}}}
}

// closedIdle is how net/http's error reads that says that the server closed the connection before the request was written. It has no name.
const closedIdle = "http: server closed idle connection"

// Down reports whether err means that no graild answers at the socket: none runs, or it ended during the request,
// which then may or may not have been carried out.
func Down(err error) bool {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return false
	}
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, hv.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ENOENT) ||
		strings.HasSuffix(err.Error(), closedIdle)
}

// Absent reports whether err means that the request never reached a graild.
func Absent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// maxBody bounds an answer, in bytes: 1,000 crash records fit.
const maxBody = 64 << 20

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://graild/v1/"+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		var e Error
		if json.Unmarshal(b, &e) != nil || e.Message == "" {
			e = Error{Kind: Internal, Message: "graild answered " + resp.Status + ": " + strings.TrimSpace(string(b))}
		}
		return &e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("graild's answer to %s %s: %w", method, path, err)
	}
	return nil
}

func seg(name string) string { return url.PathEscape(name) }

func forced(force bool) string {
	if force {
		return "?force=1"
	}
	return ""
}

// Version asks graild who it is.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	return v, c.do(ctx, "GET", "version", nil, &v)
}

// VMs lists the personality VMs, by name.
func (c *Client) VMs(ctx context.Context) (v []VM, err error) {
	return v, c.do(ctx, "GET", "vms", nil, &v)
}

// VM describes one personality VM.
func (c *Client) VM(ctx context.Context, name string) (v VM, err error) {
	return v, c.do(ctx, "GET", "vms/"+seg(name), nil, &v)
}

// CreateVM makes a personality VM and, if asked to, starts it.
func (c *Client) CreateVM(ctx context.Context, r CreateVM) (v VM, err error) {
	return v, c.do(ctx, "POST", "vms", r, &v)
}

// StartVM starts a personality VM that does not run.
func (c *Client) StartVM(ctx context.Context, name string, r StartVM) (v VM, err error) {
	return v, c.do(ctx, "POST", "vms/"+seg(name)+"/start", r, &v)
}

// StopVM ends a personality VM and answers when it has ended.
func (c *Client) StopVM(ctx context.Context, name string, r StopVM) (v VM, err error) {
	return v, c.do(ctx, "POST", "vms/"+seg(name)+"/stop", r, &v)
}

// SignalVM sends a signal to the guest of a personality VM.
func (c *Client) SignalVM(ctx context.Context, name string, signal int) error {
	return c.do(ctx, "POST", "vms/"+seg(name)+"/signal", SignalVM{Signal: signal}, nil)
}

// WaitVM answers when the run of that generation has ended.
func (c *Client) WaitVM(ctx context.Context, name string, generation int) (v VM, err error) {
	return v, c.do(ctx, "GET", "vms/"+seg(name)+"/wait?generation="+strconv.Itoa(generation), nil, &v)
}

// RemoveVM forgets a personality VM; a running one only when forced.
func (c *Client) RemoveVM(ctx context.Context, name string, force bool) error {
	return c.do(ctx, "DELETE", "vms/"+seg(name)+forced(force), nil, nil)
}

// Drivers lists the driver VMs, by name.
func (c *Client) Drivers(ctx context.Context) (d []Driver, err error) {
	return d, c.do(ctx, "GET", "drivers", nil, &d)
}

// Driver describes one driver VM.
func (c *Client) Driver(ctx context.Context, name string) (d Driver, err error) {
	return d, c.do(ctx, "GET", "drivers/"+seg(name), nil, &d)
}

// DriverStats asks what a driver VM counted.
func (c *Client) DriverStats(ctx context.Context, name string) (s DriverStats, err error) {
	return s, c.do(ctx, "GET", "drivers/"+seg(name)+"/stats", nil, &s)
}

// CreateDriver makes and starts a driver VM and answers when it serves.
func (c *Client) CreateDriver(ctx context.Context, r CreateDriver) (d Driver, err error) {
	return d, c.do(ctx, "POST", "drivers", r, &d)
}

// RestartDriver replaces the instance of a driver VM, after a drain where that is possible.
func (c *Client) RestartDriver(ctx context.Context, name string) (d Driver, err error) {
	return d, c.do(ctx, "POST", "drivers/"+seg(name)+"/restart", nil, &d)
}

// ResumeDriver makes a driver VM that waits after crashes try again, and answers when it serves.
func (c *Client) ResumeDriver(ctx context.Context, name string) (d Driver, err error) {
	return d, c.do(ctx, "POST", "drivers/"+seg(name)+"/resume", nil, &d)
}

// UpgradeDriver replaces the program of a driver VM and answers when the new one serves.
func (c *Client) UpgradeDriver(ctx context.Context, name string, r UpgradeDriver) (u Upgrade, err error) {
	return u, c.do(ctx, "POST", "drivers/"+seg(name)+"/upgrade", r, &u)
}

// CrashDriver makes a driver VM fail on purpose.
func (c *Client) CrashDriver(ctx context.Context, name, how string) (d Driver, err error) {
	return d, c.do(ctx, "POST", "drivers/"+seg(name)+"/crash", CrashDriver{How: how}, &d)
}

// RemoveDriver ends and forgets a driver VM; one with clients only when forced.
func (c *Client) RemoveDriver(ctx context.Context, name string, force bool) error {
	return c.do(ctx, "DELETE", "drivers/"+seg(name)+forced(force), nil, nil)
}

// Crashes lists crash records, oldest first; an empty driver means all.
func (c *Client) Crashes(ctx context.Context, driver string) (list []Crash, err error) {
	return list, c.do(ctx, "GET", "crashes?driver="+url.QueryEscape(driver), nil, &list)
}

// Log tells where the log of a VM or a driver is, when what was printed until now is in it.
func (c *Client) Log(ctx context.Context, name string) (l Log, err error) {
	return l, c.do(ctx, "GET", "logs/"+seg(name), nil, &l)
}

// Logs lists the logs that a console driver keeps.
func (c *Client) Logs(ctx context.Context) (l []KeptLog, err error) {
	return l, c.do(ctx, "GET", "logs", nil, &l)
}

// Shutdown ends graild. VMs run on.
func (c *Client) Shutdown(ctx context.Context) error { return c.do(ctx, "POST", "shutdown", nil, nil) }
