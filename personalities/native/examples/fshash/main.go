// Command fshash is a native personality that works on two disks: it mounts the ext4 file system on the disk
// "src", hashes every regular file, and writes the list to the disk "out".
//
//	grailctl run --disk DRIVER/src:ro --disk DRIVER/out -- fshash
//
// With -passes N it hashes everything N times, and fails if two passes differ. With -image FILE -list FILE it does
// the same on a host's files, outside a VM.
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
	j := job{out: os.Stdout}
	flag.IntVar(&j.workers, "workers", 2*runtime.NumCPU(), "files hashed at a time")
	flag.IntVar(&j.passes, "passes", 1, "how often to hash everything")
	flag.Parse()
	var err error
	if j.passes < 1 {
		err = fmt.Errorf("-passes %d; give 1 or more", j.passes)
	} else if *image != "" {
		err = j.onHost(*image, *list)
	} else {
		err = j.inVM(*src, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fshash:", err)
		os.Exit(1)
	}
}

// progressStep is the number of files between two lines of progress.
const progressStep = 1000

// job is one run of the program.
type job struct {
	workers, passes int
	out             io.Writer // takes the progress
}

// inVM is the job proper.
func (j job) inVM(srcName, outName string) error {
	src, err := guest.OpenDisk(srcName)
	if err != nil {
		return err
	}
	out, err := guest.OpenDisk(outName)
	if err != nil {
		return err
	}
	fmt.Fprintf(j.out, "fshash: started, disks %s (%d MiB) and %s (%d MiB)\n", srcName, src.Size()>>20, outName, out.Size()>>20)
	list, err := j.hash(src, src.Size())
	if err != nil {
		return err
	}
	if err := WriteList(out, out.Size(), list); err != nil {
		return err
	}
	fmt.Fprintf(j.out, "fshash: list of %d bytes written and flushed to %s\n", len(list), outName)
	return nil
}

func (j job) onHost(image, list string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := j.hash(f, st.Size())
	if err != nil || list == "" {
		return err
	}
	return os.WriteFile(list, b, 0o644)
}

// hash returns the sorted list of the file system on disk, and prints how it gets on.
func (j job) hash(disk io.ReaderAt, size int64) ([]byte, error) {
	begin := time.Now()
	fs, err := Mount(disk, size)
	if err != nil {
		return nil, err
	}
	files, err := fs.Files()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(j.out, "fshash: mounted, %d regular files, %.2f s\n", len(files), time.Since(begin).Seconds())
	var list []byte
	for pass := 1; pass <= j.passes; pass++ {
		begin := time.Now()
		sums, n, err := HashAll(fs, files, j.workers, func(n int, bytes int64) {
			if n%progressStep == 0 {
				fmt.Fprintf(j.out, "fshash: pass %d of %d: %d of %d files, %d MiB\n", pass, j.passes, n, len(files), bytes>>20)
			}
		})
		if err != nil {
			return nil, err
		}
		sec := time.Since(begin).Seconds()
		fmt.Fprintf(j.out, "fshash: pass %d of %d: done, %d files, %d bytes, %.2f s, %.1f MiB/s\n", pass, j.passes, len(files), n, sec,
			float64(n)/(1<<20)/sec)
		l := listOf(files, sums)
		if list != nil && !bytes.Equal(l, list) {
			return nil, fmt.Errorf("pass %d read other content than pass %d", pass, pass-1)
		}
		list = l
	}
	return list, nil
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
