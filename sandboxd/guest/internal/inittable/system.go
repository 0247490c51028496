package inittable

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/journal"
	"sandlot.dev/guest/internal/wire"
)

const cpuPeriodUS = 100_000

// Settle gives the sandbox its name, hosts, resolvers, quota and fresh randomness. What cannot be written is noted and skipped:
// an image need not have /etc.
func Settle(init wire.Init, root string) {
	if init.Hostname != "" {
		note("hostname", syscall.Sethostname([]byte(init.Hostname)))
		write(root+"/etc/hostname", init.Hostname+"\n")
		write(root+"/etc/hosts", hosts(init))
	}
	if len(init.Resolvers) > 0 {
		write(root+"/etc/resolv.conf", "nameserver "+strings.Join(init.Resolvers, "\nnameserver ")+"\n")
	}
	if quota := int(init.CPUs * cpuPeriodUS); quota > 0 {
		// The kernel made it from the quota of its own start, which for a ready sandbox was nobody's yet.
		note("cpu quota", feed(root+"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", strconv.AppendInt(nil, int64(quota), 10)))
	}
	if len(init.SeedBase64) > 0 {
		note("seed", feed(root+"/dev/urandom", init.SeedBase64))
	}
}

func hosts(init wire.Init) string {
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	if init.Address != "" {
		return text + fmt.Sprintf("%s\t%s\n", init.Address, init.Hostname)
	}
	return text + fmt.Sprintf("127.0.1.1\t%s\n", init.Hostname)
}

// write replaces a symbolic link instead of following it: images link resolv.conf to files that do not exist here.
func write(path, text string) {
	if status, err := os.Lstat(path); err == nil && !status.Mode().IsRegular() {
		note(path, os.Remove(path))
	}
	note(path, fill(path, []byte(text)))
}

// fill writes a small file without truncating it first, and not at all where it says so already: on an overlay both cost
// far more than to look.
func fill(path string, text []byte) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	found := make([]byte, len(text)+1)
	count, err := unix.Pread(fd, found, 0)
	if err == nil && bytes.Equal(found[:count], text) {
		return nil
	}
	if _, err := unix.Pwrite(fd, text, 0); err != nil {
		return err
	}
	return unix.Ftruncate(fd, int64(len(text)))
}

func feed(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Write(data)
	return err
}

func note(what string, err error) {
	if err != nil {
		journal.Note("init: %s: %v", what, err)
	}
}
