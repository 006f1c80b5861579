package agent

import "errors"

// Where the initial file system holds things for the agent.
const (
	ConfigPath  = "/grail/config.json" // a Config
	ModulesPath = "/grail/modules"     // paths of modules, one a line, each behind those that it needs
)

// Config is what the agent does when the guest starts. The zero Config runs from the initial file system and waits for calls.
type Config struct {
	// Root is the disk whose file system the guest works on. Nil: the initial file system.
	Root *Disk `json:",omitempty"`
	// Mounts are further disks, in the order of mounting.
	Mounts  []Mount  `json:",omitempty"`
	Network *Network `json:",omitempty"`
	// Env is added to the environment of every program.
	Env []string `json:",omitempty"`
	// Main is run when all is ready, with the console for input and output. Nil: nothing.
	Main *Process `json:",omitempty"`
	// OnExit is what happens when Main has ended; empty: nothing.
	OnExit Mode `json:",omitempty"`
	// GraceMs is the time between SIGTERM and SIGKILL of a shutdown that does not say it. 0: DefaultGrace.
	GraceMs int64 `json:",omitempty"`
}

// Disk is a block device with a file system.
type Disk struct {
	// Serial selects a virtio-blk device by its serial number (virtio 1.2 §5.2.6, VIRTIO_BLK_T_GET_ID: 20 bytes at most).
	// Empty: the device with number Index, from 0, in the order of the kernel's names.
	Serial string `json:",omitempty"`
	Index  int    `json:",omitempty"`
	// FileSystem is ext4, erofs or squashfs. Empty: found out.
	FileSystem string `json:",omitempty"`
	ReadOnly   bool   `json:",omitempty"`
	// Overlay keeps what is written in memory, above a disk that is only read.
	Overlay bool   `json:",omitempty"`
	Options string `json:",omitempty"` // the file system's
	// WaitMs is how long to wait for the device. 0: 10 s.
	WaitMs int64 `json:",omitempty"`
}

// Mount is a disk with its place.
type Mount struct {
	Disk
	Target string
}

// maxSerial is the length of a virtio-blk serial number.
const maxSerial = 20

// Check finds mistakes that would only show inside.
func (c *Config) Check() error {
	disks := make([]Disk, 0, len(c.Mounts)+1)
	if c.Root != nil {
		disks = append(disks, *c.Root)
	}
	for _, m := range c.Mounts {
		if len(m.Target) == 0 || m.Target[0] != '/' {
			return errors.New("agent: a mount's target must be an absolute path")
		}
		if m.Overlay {
			return errors.New("agent: only the root disk can have an overlay")
		}
		disks = append(disks, m.Disk)
	}
	for _, d := range disks {
		if len(d.Serial) > maxSerial {
			return errors.New("agent: a disk's serial number has at most 20 characters")
		}
		switch d.FileSystem {
		case "", "ext4", "erofs", "squashfs":
		default:
			return errors.New("agent: a disk's file system must be ext4, erofs or squashfs")
		}
	}
	if c.Main != nil && len(c.Main.Argv) == 0 {
		return errors.New("agent: the main program has no name")
	}
	switch c.OnExit {
	case "", PowerOff, Reboot, Halt:
	default:
		return errors.New("agent: OnExit must be poweroff, reboot or halt")
	}
	return nil
}
