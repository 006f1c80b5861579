// Command guest is a guest for the tests: its first argument says what it does.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Println("usage: guest WHAT")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "exit":
		n, _ := strconv.Atoi(os.Args[2])
		os.Exit(n)
	case "echo":
		fmt.Println(strings.Join(os.Args[2:], " "))
	case "stderr":
		fmt.Fprintln(os.Stderr, "to stderr")
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "env":
		fmt.Println(os.Getenv(os.Args[2]))
	case "file":
		b, err := os.ReadFile(os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Stdout.Write(b)
	case "signal": // says which signal came
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
		fmt.Println("waiting")
		fmt.Println("got", <-c)
	case "deaf": // ignores what can be ignored
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("waiting")
		for range time.Tick(time.Hour) {
		}
	case "count": // prints so many lines, with so many microseconds in between
		n, _ := strconv.Atoi(os.Args[2])
		pause, _ := strconv.Atoi(os.Args[3])
		for i := range n {
			fmt.Println("line", i)
			time.Sleep(time.Duration(pause) * time.Microsecond)
		}
	case "flood": // prints so many MiB as fast as it can, then one more line
		n, _ := strconv.Atoi(os.Args[2])
		b := []byte(strings.Repeat(strings.Repeat("x", 99)+"\n", 500))
		for left := n << 20; left > 0; left -= len(b) {
			os.Stdout.Write(b)
		}
		fmt.Println("the end")
	case "garbage": // prints what no terminal should see
		b := make([]byte, 256)
		for i := range b {
			b[i] = byte(i)
		}
		os.Stdout.Write(b)
		os.Stdout.Write([]byte("\x1b]0;title\x07\x1b[2J" + strings.Repeat("long ", 10_000) + "\nend without a line feed"))
	case "panic":
		var p *int
		fmt.Println(*p)
	case "eat": // uses up all memory
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	}
}
