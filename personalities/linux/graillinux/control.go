package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/personalities/linux/agent"
)

// serveConn answers the requests of one connection.
func (v *vm) serveConn(c *hv.Conn) {
	for {
		var req hv.Request
		fds, err := c.Receive(&req)
		if err == nil && req.Op == hv.OpExec {
			v.exec(c, req.Command, fds)
			return
		}
		if err == nil && req.Op == hv.OpConsole {
			v.watch(c, fds)
			return
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			return
		}
		resp, err := v.control(&req)
		if err != nil {
			resp.Error = err.Error()
		}
		if c.Send(resp) != nil {
			return
		}
	}
}

func (v *vm) control(req *hv.Request) (resp hv.Response, err error) {
	switch req.Op {
	case hv.OpStatus:
		st := &hv.Status{Name: v.spec.Name, State: hv.StateStarting, Engine: v.spec.Engine, Console: v.console.Lines(),
			Stats: v.stats()}
		select {
		case <-v.ready:
			st.State = hv.StateReady
		default:
		}
		resp.Status = st
	case hv.OpPlug:
		resp.Found, err = v.plug(req.Device)
	case hv.OpUnplug:
		err = v.unplug(req.Device)
	case hv.OpDevices:
		resp.Devices = v.plugged()
	case hv.OpAttachments: // its disks are its portals' clients
	case hv.OpSignal:
		err = v.signal(syscall.Signal(req.Signal))
	case hv.OpReclaim:
		resp.Reclaimed, err = v.reclaim(req.Reclaim)
	case hv.OpReserve:
		if v.memory.ram == nil {
			return resp, errors.New("the machine is being set up")
		}
		err = v.reserve(v.ctx, req.Reserve)
	case hv.OpKill:
		v.end()
	default:
		err = fmt.Errorf("a Linux VM does not know the request %q", req.Op)
	}
	return resp, err
}

// end ends the VM at once.
func (v *vm) end() {
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	v.kill()
}

// signal has SIGTERM shut the guest down, as it would an operating system, has SIGWINCH tell the guest the size of the terminal, and gives the
// others to the VM's program.
func (v *vm) signal(sig syscall.Signal) error {
	if sig == syscall.SIGWINCH && v.spec.Foreign.TTY {
		v.mu.Lock()
		defer v.mu.Unlock()
		select {
		case <-v.resize: // it is out of date
		default:
		}
		v.resize <- v.size()
		return nil
	}
	if sig != syscall.SIGTERM {
		select {
		case v.signals <- sig:
			return nil
		default:
			return errors.New("the guest does not take its signals")
		}
	}
	v.mu.Lock()
	v.stopped = true
	a := v.agent
	v.mu.Unlock()
	if a == nil {
		v.kill() // it is still booting: there is nothing to lose
		return nil
	}
	ctx, cancel := context.WithTimeout(v.ctx, shutdownLimit)
	defer cancel()
	return a.Shutdown(ctx, agent.Shutdown{Mode: agent.PowerOff})
}

// size is that of the terminal with which the VM was started.
func (v *vm) size() agent.Size {
	w, err := unix.IoctlGetWinsize(v.spec.Stdin, unix.TIOCGWINSZ)
	if err != nil {
		return agent.Size{}
	}
	return agent.Size{Rows: w.Row, Columns: w.Col}
}

// watch joins the console to whoever is at the other end of c, until one of them ends.
func (v *vm) watch(c *hv.Conn, fds []int) {
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "console"))
	}
	if len(files) == 2 {
		v.serial.join(files[0], files[1])
	}
	for _, f := range files {
		f.Close()
	}
	_ = c.Send(hv.Response{})
}

// exec runs one program for whoever is at the other end of c, and answers when it has ended.
func (v *vm) exec(c *hv.Conn, cmd *hv.Command, fds []int) {
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "exec"))
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	refuse := func(text string) { _ = c.Send(hv.Response{Error: text}) }
	if cmd == nil || len(files) != 3 {
		refuse("expected a command and three descriptors")
		return
	}
	select {
	case <-v.ready:
	case <-v.ctx.Done():
		refuse("the VM is ending")
		return
	}
	ctx, cancel := context.WithCancel(v.ctx)
	defer cancel()
	signals, resize := make(chan syscall.Signal, 16), make(chan agent.Size, 1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		defer cancel() // whoever wanted the program is gone
		for {
			var req hv.Request
			fds, err := c.Receive(&req)
			for _, fd := range fds {
				unix.Close(fd)
			}
			if err != nil {
				return
			}
			switch req.Op {
			case hv.OpSignal:
				select {
				case signals <- syscall.Signal(req.Signal):
				case <-ctx.Done():
				}
			case hv.OpResize:
				select {
				case resize <- agent.Size{Rows: req.Rows, Columns: req.Columns}:
				case <-ctx.Done():
				}
			}
		}
	}()
	code, err := v.agent.Exec(ctx, agent.ExecOptions{
		Process: agent.Process{Argv: cmd.Argv, Env: cmd.Env, Dir: cmd.Dir},
		TTY:     cmd.TTY, Size: agent.Size{Rows: cmd.Rows, Columns: cmd.Columns},
		Stdin: files[0], Stdout: files[1], Stderr: files[2], Signals: signals, Resize: resize,
	})
	resp := hv.Response{Exit: &code}
	if err != nil {
		resp.Error = err.Error()
	}
	_ = c.Send(resp)
	_ = c.Shutdown()
	<-received // c is closed next
}
