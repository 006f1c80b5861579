package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/personalities/linux/agent"
)

// standardPath is where programs are looked for if nobody says otherwise.
const standardPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Exit codes of programs that did not start, as a shell's.
const (
	codeNotFound = 127
	codeNotRun   = 126
)

// Streams are the descriptors of a program: standard input, output and errors.
type Streams struct {
	In, Out, Err *os.File
	// Terminal says that In is a terminal, which becomes the program's controlling one.
	Terminal bool
}

// Launch starts a program with env below what it asks for itself.
func Launch(r *Reaper, p *agent.Process, env []string, s Streams) (*Child, error) {
	if len(p.Argv) == 0 {
		return nil, errors.New("no program to run")
	}
	for _, list := range [][]string{p.Argv, p.Env, {p.Dir}} {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				return nil, errors.New("a zero byte in an argument")
			}
		}
	}
	cred, home, err := credentials(p.User)
	if err != nil {
		return nil, err
	}
	base := []string{"PATH=" + standardPath, "HOME=" + home}
	if s.Terminal {
		base = append(base, "TERM=xterm")
	}
	all := merge(base, env, p.Env)
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	path, err := find(p.Argv[0], dir, all)
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: all, Files: []uintptr{s.In.Fd(), s.Out.Fd(), s.Err.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: s.Terminal, Credential: cred}}
	child, err := r.Start(path, p.Argv, attr)
	if err != nil {
		if _, statErr := os.Stat(dir); statErr != nil {
			return nil, fmt.Errorf("folder %s: %w", dir, statErr)
		}
		return nil, &fs.PathError{Op: "run", Path: path, Err: err}
	}
	return child, nil
}

// merge returns the variables of all lists, a later one in place of an earlier of the same name.
func merge(lists ...[]string) []string {
	var all []string
	place := make(map[string]int)
	for _, list := range lists {
		for _, v := range list {
			name, _, ok := strings.Cut(v, "=")
			if !ok || name == "" {
				continue
			}
			if n, ok := place[name]; ok {
				all[n] = v
				continue
			}
			place[name] = len(all)
			all = append(all, v)
		}
	}
	return all
}

// find returns the path of a program as execvp finds it.
func find(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var failure error = &fs.PathError{Op: "run", Path: name, Err: unix.ENOENT}
	for _, v := range env {
		list, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			if !filepath.IsAbs(d) {
				d = filepath.Join(dir, d)
			}
			path := filepath.Join(d, name)
			st, err := os.Stat(path)
			switch {
			case err != nil || st.IsDir():
			case st.Mode()&0o111 == 0:
				failure = &fs.PathError{Op: "run", Path: path, Err: unix.EACCES}
			default:
				return path, nil
			}
		}
	}
	return "", failure
}

// credentials returns who runs a program, nil for this process's own user, and the home folder.
func credentials(name string) (*syscall.Credential, string, error) {
	if name == "" {
		return nil, "/root", nil
	}
	who, group, hasGroup := strings.Cut(name, ":")
	c := &syscall.Credential{}
	home := "/"
	u, err := user.Lookup(who)
	if err != nil {
		u, err = user.LookupId(who)
	}
	if err == nil {
		home = u.HomeDir
		who = u.Uid
		if !hasGroup {
			group = u.Gid
			ids, _ := u.GroupIds() // a damaged /etc/group names none
			for _, id := range ids {
				if n, err := strconv.ParseUint(id, 10, 32); err == nil {
					c.Groups = append(c.Groups, uint32(n))
				}
			}
		}
	}
	n, err := strconv.ParseUint(who, 10, 32)
	if err != nil {
		return nil, "", fmt.Errorf("there is no user %q", who)
	}
	c.Uid = uint32(n)
	if group == "" {
		return c, home, nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		group = g.Gid
	}
	n, err = strconv.ParseUint(group, 10, 32)
	if err != nil {
		return nil, "", fmt.Errorf("there is no group %q", group)
	}
	c.Gid = uint32(n)
	return c, home, nil
}

// ExitOf returns how a program ended.
func ExitOf(s unix.WaitStatus) agent.Exit {
	if s.Signaled() {
		return agent.Exit{Code: 128 + int(s.Signal()), Signal: int(s.Signal())}
	}
	return agent.Exit{Code: s.ExitStatus()}
}

// NotStarted returns the exit of a program that could not be started.
func NotStarted(err error) agent.Exit {
	code := codeNotRun
	if errors.Is(err, fs.ErrNotExist) {
		code = codeNotFound
	}
	return agent.Exit{Code: code, Error: err.Error()}
}
