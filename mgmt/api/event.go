package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Event is something that happened: a VM or a driver started, ended, recovered, was upgraded, and so on.
type Event struct {
	Seq     uint64            `json:"seq"` // counts a graild's events from 1 on
	Time    time.Time         `json:"time"`
	Level   string            `json:"level"` // INFO, WARN or ERROR
	Event   string            `json:"event"` // what happened
	Details map[string]string `json:"details,omitempty"`
}

// Events calls f for each event that this graild knows of and that is newer than after, oldest first, and with follow for each one to come. It returns
// when there are no more, ctx has ended, f returns an error, or graild has gone, which Down tells from other errors.
func (c *Client) Events(ctx context.Context, after uint64, follow bool, f func(Event) error) error {
	path := "http://graild/v1/events?after=" + strconv.FormatUint(after, 10)
	if follow {
		path += "&follow=1"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return &Error{Kind: Internal, Message: "graild answered " + resp.Status}
	}
	for d := json.NewDecoder(resp.Body); ; {
		var v Event
		if err := d.Decode(&v); err != nil {
			if errors.Is(err, io.EOF) && (!follow || ctx.Err() != nil) {
				return nil
			}
			return err
		}
		if err := f(v); err != nil {
			return err
		}
	}
}
