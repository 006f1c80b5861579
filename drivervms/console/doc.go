// Package console is the host side of the console driver VM, which keeps the logs of all VMs' consoles: what it is told with an attachment, and what its
// program needs. The program is drivervms/console/guest, its work drivervms/console/serve, the form of the logs drivervms/console/logfile.
package console
