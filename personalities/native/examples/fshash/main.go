// Command fshash is a native personality that works on two disks: it mounts the ext4 file system on the disk
// "src", hashes every regular file, and writes the list to the disk "out".
//
//	grailctl run --disk DRIVER/src:ro --disk DRIVER/out -- fshash
//
// With -image FILE -list FILE it does the same on a host's files, outside a VM.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/grailos/grail/hv/guest"
)

func main() {
	src := flag.String("src", "src", "disk that holds the ext4 file system")
	out := flag.String("out", "out", "disk that takes the list")
	image := flag.String("image", "", "host file to use instead of the source disk")
	list := flag.String("list", "", "host file to use instead of the output disk; the list alone is written")
	workers := flag.Int("workers", 2*runtime.NumCPU(), "files hashed at a time")
	flag.Parse()
	var err error
	if *image != "" {
		err = onHost(*image, *list, *workers)
	} else {
		err = inVM(*src, *out, *workers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fshash:", err)
		os.Exit(1)
	}
}

// inVM is the job proper.
func inVM(srcName, outName string, workers int) error {
	src, err := guest.OpenDisk(srcName)
	if err != nil {
		return err
	}
	out, err := guest.OpenDisk(outName)
	if err != nil {
		return err
	}
	list, err := hash(src, src.Size(), workers)
	if err != nil {
		return err
	}
	if err := WriteList(out, out.Size(), list); err != nil {
		return err
	}
	fmt.Printf("fshash: list of %d bytes written and flushed to %s\n", len(list), outName)
	return nil
}

func onHost(image, list string, workers int) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := hash(f, st.Size(), workers)
	if err != nil || list == "" {
		return err
	}
	return os.WriteFile(list, b, 0o644)
}

// hash returns the sorted list of the file system on disk, and prints how it gets on.
func hash(disk io.ReaderAt, size int64, workers int) ([]byte, error) {
	begin := time.Now()
	fs, err := Mount(disk, size)
	if err != nil {
		return nil, err
	}
	files, err := fs.Files()
	if err != nil {
		return nil, err
	}
	fmt.Printf("fshash: mounted, %d regular files, %.2f s\n", len(files), time.Since(begin).Seconds())
	last := time.Now()
	sums, bytes, err := HashAll(fs, files, workers, func(n int, bytes int64) {
		if time.Since(last) >= time.Second {
			last = time.Now()
			fmt.Printf("fshash: %d of %d files, %d MiB\n", n, len(files), bytes>>20)
		}
	})
	if err != nil {
		return nil, err
	}
	sec := time.Since(begin).Seconds()
	fmt.Printf("fshash: done: %d files, %d bytes, %.2f s, %.1f MiB/s\n", len(files), bytes, sec, float64(bytes)/(1<<20)/sec)
	return listOf(files, sums), nil
}

// listOf returns the list's lines in the order of files.
func listOf(files []File, sums [][32]byte) []byte {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	for i, f := range files {
		fmt.Fprintf(w, "%x  %s\n", sums[i], f.Path)
	}
	w.Flush()
	return b.Bytes()
}
