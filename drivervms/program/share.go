package program

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/drivervms/share"
)

// Share reads the text of an abi.MsgShare.
func Share(text string) (cfg share.Config, err error) {
	if err = json.Unmarshal([]byte(text), &cfg); err == nil {
		err = cfg.Check()
	}
	if err != nil {
		err = fmt.Errorf("share: %w", err)
	}
	return cfg, err
}

// ShareOf reads what the text of an abi.MsgAttach says of the client's share: the field "share" of its JSON object. Without it, or without
// a text, the share is the default one.
func ShareOf(text string) (share.Config, error) {
	if text == "" {
		return share.Config{}, nil
	}
	var t struct {
		Share share.Config `json:"share"`
	}
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return t.Share, fmt.Errorf("attachment's configuration: %w", err)
	}
	return t.Share, t.Share.Check()
}

// AddUses adds to the counters of an attachment what its rings had done: ringN.ops, ringN.bytes and ringN.cpuNs, and the sum cpuNs.
func AddUses(counters map[string]uint64, uses []share.Use) {
	cpu := time.Duration(0)
	for i, u := range uses {
		ring := "ring" + strconv.Itoa(i) + "."
		counters[ring+"ops"], counters[ring+"bytes"], counters[ring+"cpuNs"] = u.Ops, u.Bytes, uint64(u.CPU)
		cpu += u.CPU
	}
	counters["cpuNs"] = uint64(cpu)
}

// CPU returns the processor time that the VM has used in all, its own process included. It asks the host.
func CPU() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
