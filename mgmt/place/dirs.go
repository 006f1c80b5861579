package place

import (
	"fmt"
	"os"
	"path/filepath"
)

// Dirs are the directories of one graild. Nobody but its user may enter them.
type Dirs struct {
	State string // survives a reboot: store, logs, reports
	Run   string // does not: sockets
}

// Default returns the directories of the calling user. State is $GRAIL_STATE_DIR; else /var/lib/grail for root;
// else $XDG_STATE_HOME/grail or ~/.local/state/grail. Run is $GRAIL_RUN_DIR; else State/run when
// GRAIL_STATE_DIR is set; else /run/grail for root; else $XDG_RUNTIME_DIR/grail or State/run.
func Default() (Dirs, error) {
	d := Dirs{State: os.Getenv("GRAIL_STATE_DIR"), Run: os.Getenv("GRAIL_RUN_DIR")}
	own := d.State != ""
	root := os.Geteuid() == 0
	if d.State == "" {
		switch xdg := os.Getenv("XDG_STATE_HOME"); {
		case root:
			d.State = "/var/lib/grail"
		case filepath.IsAbs(xdg):
			d.State = filepath.Join(xdg, "grail")
		default:
			home, err := os.UserHomeDir()
			if err != nil {
				return d, fmt.Errorf("no place for Grail's state: %w; set GRAIL_STATE_DIR to a directory", err)
			}
			d.State = filepath.Join(home, ".local/state/grail")
		}
	}
	if d.Run == "" {
		switch xdg := os.Getenv("XDG_RUNTIME_DIR"); {
		case own:
			d.Run = filepath.Join(d.State, "run")
		case root:
			d.Run = "/run/grail"
		case filepath.IsAbs(xdg):
			d.Run = filepath.Join(xdg, "grail")
		default:
			d.Run = filepath.Join(d.State, "run")
		}
	}
	var err error
	if d.State, err = filepath.Abs(d.State); err != nil {
		return d, err
	}
	d.Run, err = filepath.Abs(d.Run)
	return d, err
}

// Make creates the directories, for their owner only.
func (d Dirs) Make() error {
	for _, dir := range []string{d.State, d.Run, d.Sockets(), d.VMs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w; set GRAIL_STATE_DIR and GRAIL_RUN_DIR to directories that you may write", err)
		}
	}
	return nil
}

// Sockets returns the directory of the VMs' control sockets.
func (d Dirs) Sockets() string { return filepath.Join(d.Run, "vm") }

// VMs returns the directory that holds one directory a VM, with its logs and reports.
func (d Dirs) VMs() string { return filepath.Join(d.State, "vm") }

// VM returns the directory of one VM.
func (d Dirs) VM(name string) string { return filepath.Join(d.VMs(), name) }

// Logs returns the directory of the logs that a console driver keeps.
func (d Dirs) Logs() string { return filepath.Join(d.State, "logs") }

// API returns the path of graild's API socket.
func (d Dirs) API() string { return filepath.Join(d.Run, "graild.sock") }

// Handover returns the path of the socket on which graild takes descriptors.
func (d Dirs) Handover() string { return filepath.Join(d.Run, "handover.sock") }

// Lock returns the path of the file that the one graild of these directories has locked.
func (d Dirs) Lock() string { return filepath.Join(d.State, "lock") }

// Log returns the path of graild's log.
func (d Dirs) Log() string { return filepath.Join(d.State, "graild.log") }

// Images returns the directory of kernels and initial file systems.
func (d Dirs) Images() string { return filepath.Join(d.State, "images") }

// Store returns the path of graild's store.
func (d Dirs) Store() string { return filepath.Join(d.State, "grail.db") }
