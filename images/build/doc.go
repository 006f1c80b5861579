// Package build makes root disks (ext4) from folders, tarballs, OCI image layouts, docker save archives, and Debian suites, and keeps
// them in a folder. The same input gives the same bytes, whoever builds: files are put into the disk in the order of their names, by
// debugfs (e2fsprogs), with the owners and times that the source says; no file of an archive is ever made under its own name on the host.
package build
