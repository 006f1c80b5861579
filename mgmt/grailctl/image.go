package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/grailos/grail/images/build"
	"github.com/grailos/grail/mgmt/api"
	"github.com/grailos/grail/mgmt/place"
	"github.com/grailos/grail/mgmt/size"
)

func (c *cli) imageCommand() *cobra.Command {
	cmd := group(&cobra.Command{Use: "image", GroupID: "vm", Short: "Make the disks and kernels that Linux VMs boot from"})
	cmd.AddCommand(c.imageBuildCommand(), c.imageListCommand(), c.imageInspectCommand(), c.imageRemoveCommand(), c.imagePrepareCommand())
	return cmd
}

// images opens the store of root disks.
func images() (*build.Store, place.Dirs, error) {
	dirs, err := place.Default()
	if err != nil {
		return nil, dirs, err
	}
	s, err := build.OpenStore(filepath.Join(dirs.Images(), "disks"))
	return s, dirs, err
}

func (c *cli) imagePrepareCommand() *cobra.Command {
	var arch string
	cmd := &cobra.Command{
		Use: "prepare", Short: "Fetch the kernel and make the default system; run does so too when it has to", Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs, err := place.Default()
			if err != nil {
				return err
			}
			return c.prepareLinux(cmd.Context(), dirs, arch)
		},
	}
	cmd.Flags().StringVar(&arch, "arch", "", "architecture: amd64 or arm64 (default: this host's)")
	return cmd
}

func (c *cli) imageBuildCommand() *cobra.Command {
	var o build.Options
	var bytes string
	cmd := &cobra.Command{
		Use: "build NAME", Short: "Build a root disk from a folder, an archive, a container image or a Debian suite",
		Long: `build makes an ext4 disk with the content of exactly one source. The same input gives the same bytes. The disk's path is printed; an
older image of the same name is replaced, and VMs that were made from it keep it.`,
		Example: `  grailctl image build web --dir ./rootfs
  docker save nginx > nginx.tar && grailctl image build nginx --docker nginx.tar
  grailctl image build debian --suite bookworm --package tcc --size 1G
  grailctl run --personality linux --image web -- /bin/server`,
		Args: exactly("the NAME of the image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = args[0]
			if bytes != "" {
				n, err := size.Parse(bytes)
				if err != nil {
					return fmt.Errorf("--size: %w", err)
				}
				if n%(1<<20) != 0 {
					return fmt.Errorf("--size %s is no whole number of MiB", bytes)
				}
				o.SizeMiB = int64(n >> 20)
			}
			sources := 0
			for _, s := range []string{o.Folder, o.Tarball, o.Layout, o.Archive, o.Suite} {
				if s != "" {
					sources++
				}
			}
			if sources != 1 {
				return errors.New("grailctl image build needs one source: --dir, --tar, --oci, --docker or --suite")
			}
			store, _, err := images()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			image, err := c.build(ctx, store, o)
			if err != nil {
				return err
			}
			if c.json {
				return c.print(imageView(image))
			}
			fmt.Fprintln(c.stdout, image.Disk)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Folder, "dir", "", "a folder of this host")
	f.StringVar(&o.Tarball, "tar", "", "a tarball, plain or packed with gzip, zstd or xz")
	f.StringVar(&o.Layout, "oci", "", "the folder of an OCI image layout")
	f.StringVar(&o.Archive, "docker", "", "an archive that docker save has written")
	f.StringVar(&o.Suite, "suite", "", "a Debian or Ubuntu suite, such as bookworm (needs mmdebstrap)")
	f.StringArrayVar(&o.Packages, "package", nil, "with --suite: also install this package (repeatable)")
	f.StringVar(&o.Arch, "arch", "", "architecture: amd64 or arm64 (default: amd64)")
	f.StringVar(&bytes, "size", "", "size of the disk (default: what the content needs, and room to work)")
	return cmd
}

// slowBuild is how often a build that takes long says that it is at work.
const slowBuild = 5 * time.Second

func (c *cli) build(ctx context.Context, s *build.Store, o build.Options) (*build.Image, error) {
	done := make(chan struct{})
	defer close(done)
	began := time.Now()
	go func() {
		tick := time.NewTicker(slowBuild)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				fmt.Fprintf(c.stderr, "grailctl: building image %s for %.0f s\n", o.Name, time.Since(began).Seconds())
			}
		}
	}()
	return build.Build(ctx, s, o)
}

// viewOfImage is an image with its disk's path.
type viewOfImage struct {
	*build.Image
	Path string
}

func imageView(i *build.Image) viewOfImage { return viewOfImage{i, i.Disk} }

func (c *cli) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List the root disks", Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			store, _, err := images()
			if err != nil {
				return err
			}
			list, err := store.List()
			if err != nil {
				return err
			}
			if c.json {
				views := []viewOfImage{}
				for _, i := range list {
					views = append(views, imageView(i))
				}
				return c.print(views)
			}
			w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tARCH\tSIZE\tUSED\tFILES\tCREATED\tSOURCE")
			for _, i := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", i.Name, i.Arch, size.Format(uint64(i.SizeBytes)), size.Format(uint64(i.UsedBytes)), i.Files,
					i.Created.Local().Format("2006-01-02 15:04"), i.Source)
			}
			return w.Flush()
		},
	}
}

func (c *cli) imageInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Short: "Describe a root disk, as JSON", Args: exactly("the NAME of an image"),
		RunE: func(_ *cobra.Command, args []string) error {
			store, _, err := images()
			if err != nil {
				return err
			}
			i, err := store.Inspect(args[0])
			if err != nil {
				return imageError(args[0], err)
			}
			return c.print(imageView(i))
		},
	}
}

func (c *cli) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Remove a root disk; a driver that serves it keeps it until it ends", Args: exactly("the NAME of an image"),
		RunE: func(_ *cobra.Command, args []string) error {
			store, _, err := images()
			if err != nil {
				return err
			}
			if err := store.Remove(args[0]); err != nil {
				return imageError(args[0], err)
			}
			if !c.json {
				fmt.Fprintln(c.stdout, args[0])
			}
			return nil
		},
	}
}

func imageError(name string, err error) error {
	if errors.Is(err, build.ErrNoImage) {
		return fmt.Errorf("there is no image %s; grailctl image ls lists those that are there", name)
	}
	return err
}

// fromImage makes an image the system of a VM, with what the image says about running it where the command line says nothing.
func (f *vmFlags) fromImage(cfg *api.VMConfig) error {
	if f.root != "" {
		return errors.New("--image and --root exclude each other: either is the system of the VM")
	}
	name, writable := strings.CutSuffix(f.image, ":rw")
	store, _, err := images()
	if err != nil {
		return err
	}
	i, err := store.Inspect(name)
	if err != nil {
		return imageError(name, err)
	}
	if cfg.Arch == "" {
		cfg.Arch = i.Arch
	}
	if cfg.Arch != i.Arch {
		return fmt.Errorf("--arch %s: image %s is for %s", cfg.Arch, name, i.Arch)
	}
	cfg.Image = &api.Image{Name: name, Digest: i.Digest, Path: i.Disk, Writable: writable}
	if cfg.Program == "" && len(i.Argv) > 0 {
		cfg.Program, cfg.Args = i.Argv[0], i.Argv[1:]
	}
	cfg.Env, cfg.Dir, cfg.User = slices.Clone(i.Env), i.Dir, i.User
	return nil
}

// completeImages offers the images for --image.
func completeImages(cmd *cobra.Command) {
	// It fails for a flag that is not there.
	_ = cmd.RegisterFlagCompletionFunc("image", func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
		if store, _, err := images(); err == nil {
			list, _ := store.List()
			for _, i := range list {
				names = append(names, i.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}
