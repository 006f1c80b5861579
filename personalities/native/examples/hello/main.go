// Command hello prints a greeting, its arguments and its environment: the smallest native personality. With the one
// argument -wait it then waits until its standard input ends.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
)

func main() {
	fmt.Printf("hello from %s/%s on %d processors\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	for i, a := range os.Args[1:] {
		fmt.Printf("argument %d: %s\n", i+1, a)
	}
	for _, e := range os.Environ() {
		fmt.Println("environment:", e)
	}
	if len(os.Args) == 2 && os.Args[1] == "-wait" {
		io.Copy(io.Discard, os.Stdin)
	}
}
