// Command goguest is the Go guest of this package's tests: its first argument says what to do.
package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	n := 0
	if len(os.Args) > 2 {
		n, _ = strconv.Atoi(os.Args[2])
	}
	switch os.Args[1] {
	case "hello":
		fmt.Println("hello, world")
	case "args":
		fmt.Printf("%q %q pid=%d\n", os.Args[2:], os.Environ(), os.Getpid())
		os.Exit(7)
	case "echo":
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			fmt.Println("got", in.Text())
		}
	case "gc":
		gc(n)
	case "timers":
		timers(n)
	case "threads":
		threads(n)
	case "nil":
		var p *int
		fmt.Println(*p)
	case "deep":
		fmt.Println(deep(n))
	case "hog":
		hog()
	case "sigterm":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		fmt.Println("got", <-c)
	case "file":
		_, err := os.ReadFile("/etc/passwd")
		fmt.Println(err)
	case "ping":
		start := time.Now()
		for i := 0; i < n; i++ {
			syscall.RawSyscall(0x4700, uintptr(i), 0, 0)
		}
		fmt.Println(time.Since(start).Nanoseconds() / int64(n))
	}
}

func gc(seconds int) {
	debug.SetGCPercent(20)
	var wg sync.WaitGroup
	var sum sync.Map
	for g := 0; g < 8; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			total := 0
			keep := make([][]byte, 64)
			for i := 0; i < 3000*seconds; i++ {
				keep[i%64] = make([]byte, 1000+i%7000)
				keep[i%64][i%1000] = byte(i)
				total += len(keep[(i*7)%64])
				if i%500 == 0 {
					runtime.Gosched()
				}
			}
			sum.Store(g, total)
		}()
	}
	// Busy loops without calls are only preempted by SIGURG.
	for g := 0; g < 2; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			x := 1
			for i := 0; i < 30_000_000*seconds; i++ {
				x = x*31 + i
			}
			sum.Store(100+g, x)
		}()
	}
	wg.Wait()
	var st runtime.MemStats
	runtime.ReadMemStats(&st)
	fmt.Println("collected", st.NumGC > 5)
}

func timers(n int) {
	start := time.Now()
	t := time.NewTicker(2 * time.Millisecond)
	for i := 0; i < n; i++ {
		<-t.C
	}
	time.Sleep(5 * time.Millisecond)
	d := time.Since(start)
	fmt.Println("ticked", d >= time.Duration(2*n)*time.Millisecond, d < 5*time.Second)
}

func threads(n int) {
	var up, wg sync.WaitGroup
	up.Add(n)
	release := make(chan bool)
	for i := 0; i < n; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			runtime.LockOSThread()
			up.Done()
			<-release
		}()
	}
	up.Wait()
	close(release)
	wg.Wait()
	fmt.Println("joined", n)
}

func deep(n int) int {
	if n == 0 {
		return 0
	}
	var pad [100]byte
	pad[n%100] = 1
	return deep(n-1) + int(pad[n%100])
}

func hog() {
	var all [][]byte
	for {
		b := make([]byte, 16<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
}
