package guest

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// openTerminal returns a new pair of pseudo-terminals: the agent's side, which does not block, and the program's.
func openTerminal() (ours, theirs *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("open /dev/ptmx", err)
	}
	ours = os.NewFile(uintptr(fd), "ptmx")
	defer func() {
		if err != nil {
			_ = ours.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, os.NewSyscallError("unlock a terminal", err)
	}
	// Opened through ours, so that no path is needed.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, os.NewSyscallError("open a terminal", errno)
	}
	return ours, os.NewFile(peer, "tty"), nil
}

// resize sets a terminal's size, if there is one.
func resize(f *os.File, size agent.Size) error {
	if size.Rows == 0 || size.Columns == 0 {
		return nil
	}
	return withFD(f, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
}

// pending returns how many bytes f could give at once.
func pending(f *os.File) (n int) {
	_ = withFD(f, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return n
}

// withFD calls do with f's descriptor, which stays as it is: os.File.Fd would make it block.
func withFD(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}
