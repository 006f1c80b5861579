package daemon

import (
	"os"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/place"
)

// helperFiles opens what each process beside a driver VM starts with: a fresh file in the driver's folder for what it says itself, and the socket on
// which graild asks it. Both are the caller's.
func (d *Daemon) helperFiles(driver, log, socket string) (stderr, control *os.File, err error) {
	if err := os.MkdirAll(d.dirs.VM(driver), 0o700); err != nil {
		return nil, nil, err
	}
	if stderr, err = os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600); err != nil {
		return nil, nil, err
	}
	err = place.WithSocket(socket, func(short string) (err error) {
		control, err = hv.Listen(short)
		return err
	})
	if err != nil {
		stderr.Close()
		return nil, nil, err
	}
	return stderr, control, nil
}
