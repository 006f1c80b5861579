// Command graild is Grail's daemon: it starts and watches VMs and driver VMs, and serves grailctl. It may be killed at
// any time; VMs run on, and the next graild adopts them. grailctl starts it when it is needed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/grailos/grail/hv"
	"github.com/grailos/grail/mgmt/daemon"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/starter"
	"github.com/grailos/grail/mgmt/version"
)

// maxLog is the size beyond which a starting graild puts its log aside, in bytes.
const maxLog = 8 << 20

// gcPercent lets graild's few MiB grow before they are collected: a collection while a driver is replaced makes its clients wait.
const gcPercent = 400

func main() {
	background := flag.Bool("background", false, "log to the state directory only; tell on descriptor 3 when ready")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, "usage: graild [--background] [--version]\n\n"+
			"Grail's daemon. State lies in $GRAIL_STATE_DIR, sockets in $GRAIL_RUN_DIR. grailctl starts it when it is needed.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *showVersion {
		fmt.Println("graild", version.Full())
		return
	}
	unix.Umask(0o077)
	if err := run(*background); err != nil {
		fmt.Fprintln(os.Stderr, "graild:", err)
		os.Exit(1)
	}
}

func run(background bool) error {
	_ = hv.TuneRuntime() // a host on which that fails pays a little more
	debug.SetGCPercent(gcPercent)
	tell := func(string) {}
	if background {
		ready := os.NewFile(starter.ReadyFD, "ready")
		unix.CloseOnExec(starter.ReadyFD)
		var once sync.Once
		tell = func(line string) {
			once.Do(func() {
				fmt.Fprintln(ready, line)
				ready.Close()
			})
		}
	}
	err := serve(background, func() { tell(starter.Ready) })
	switch {
	case errors.Is(err, daemon.ErrRunning):
		tell(starter.AlreadyRunning)
	case err != nil:
		tell(err.Error())
	}
	return err
}

func serve(background bool, ready func()) error {
	dirs, err := place.Default()
	if err != nil {
		return err
	}
	if err := dirs.Make(); err != nil {
		return err
	}
	if st, err := os.Stat(dirs.Log()); err == nil && st.Size() > maxLog {
		_ = os.Rename(dirs.Log(), dirs.Log()+".1")
	}
	logFile, err := os.OpenFile(dirs.Log(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	var out io.Writer = logFile
	if !background {
		out = io.MultiWriter(logFile, os.Stderr)
	}
	log := slog.New(slog.NewTextHandler(out, nil)).With("pid", os.Getpid())
	if background {
		// A panic's trace goes to the log as well.
		_ = unix.Dup2(int(logFile.Fd()), 2)
	}

	d, err := daemon.Open(dirs, log, version.Full())
	if err != nil {
		if !errors.Is(err, daemon.ErrRunning) {
			log.Error("start", "error", err)
		}
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	listener, err := d.Listen()
	if err != nil {
		return errors.Join(err, d.Close())
	}
	server := &http.Server{Handler: d.Handler(stop), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info("graild serves", "version", version.Full(), "state", dirs.State, "socket", dirs.API())
	ready()

	select {
	case err = <-failed:
		log.Error("serve", "error", err)
	case <-ctx.Done():
		err = nil
	}
	log.Info("graild ends; VMs run on")
	// Requests that wait for VMs are cut off by Close.
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = server.Shutdown(grace)
	select {
	case cerr := <-closed:
		err = errors.Join(err, cerr)
	case <-grace.Done():
		log.Warn("graild did not end cleanly in time")
	}
	return err
}
