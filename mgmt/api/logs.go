package api

import "time"

// ConsoleConfig says what a console driver keeps. In a request, 0 means the default.
type ConsoleConfig struct {
	LogBytes  uint64 `json:"logBytes"`  // of one log
	Rate      uint64 `json:"rate"`      // bytes a second that are logged of one VM
	Keep      int    `json:"keep"`      // logs of VMs that have ended
	KeepBytes uint64 `json:"keepBytes"` // of all these together
}

// Log says where the log of a VM or a driver is.
type Log struct {
	Name   string   `json:"name"`
	Live   bool     `json:"live"`             // it can still grow
	Driver bool     `json:"driver,omitempty"` // it is a driver's: instances follow each other in it
	Gone   bool     `json:"gone,omitempty"`   // there is no such VM any more
	Files  []string `json:"files"`            // logs kept by a console driver; see drivervms/console/logfile
	Texts  []string `json:"texts"`            // text files of runs without a console driver, oldest first
}

// KeptLog is a log that a console driver keeps.
type KeptLog struct {
	Name    string    `json:"name"`
	Bytes   uint64    `json:"bytes"` // on the disk
	Changed time.Time `json:"changed"`
	Live    bool      `json:"live"` // something writes to it
	Gone    bool      `json:"gone"` // there is no VM or driver of that name
}
