package place

import (
	"fmt"
	"os"
	"path/filepath"
)

// maxSocketPath is the longest path that fits a struct sockaddr_un with its terminating zero (unix(7)).
const maxSocketPath = 107

// WithSocket calls f with a path of the socket path that fits a socket address, however long path is: the same
// one when it fits, else one through the descriptor of its directory.
func WithSocket(path string, f func(short string) error) error {
	if len(path) <= maxSocketPath {
		return f(path)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if len(short) > maxSocketPath {
		return fmt.Errorf("the name of socket %s is longer than a socket address holds", path)
	}
	return f(short)
}
