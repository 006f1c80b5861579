package busybox

import "strings"

// Applets are the programs of the system, all of which Debian's and Ubuntu's busybox-static have.
var Applets = strings.Fields(`
[ [[ ar arp arping ash awk base64 basename bc blkdiscard blockdev brctl bunzip2 bzcat bzip2 cal cat chgrp chmod chown chroot
chvt clear cmp cp cpio cut date dc dd df dirname dmesg dnsdomainname dos2unix du echo ed egrep env expand expr
factor fallocate false fatattr fgrep find fold free fstrim fsfreeze getopt grep groups gunzip gzip
halt head hexdump hostname httpd hwclock id ifconfig ip ipcalc kill killall last less link
ln logger login logname losetup ls lsmod lzcat md5sum microcom mkdir mkdosfs mke2fs mkfifo mknod
mkswap mktemp modinfo more mount mv nc netstat nl nologin nproc nslookup od paste
patch pidof ping ping6 pivot_root poweroff printf ps pwd readlink realpath reboot renice reset
rev rm rmdir route sed seq setpriv setsid sh sha1sum sha256sum sha512sum shred shuf sleep
sort ssl_client stat strings stty su swapoff swapon sync sysctl tac tail tar taskset tee telnet
test tftp time timeout top touch tr traceroute true truncate tty ubirename udhcpc umount uname uncompress
unexpand uniq unix2dos unlink unshare unxz unzip uptime usleep uudecode uuencode vi w watch watchdog wc wget which who
whoami xargs xxd xz xzcat yes zcat
`)
