package files

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/wire"
)

const (
	maxPathBytes = 4096
	maxNameBytes = 255
	// deepest is how far below a directory anything recursive goes: each level holds a descriptor.
	deepest = 4096
)

// errTooDeep says that a tree is nested deeper than anything recursive goes.
var errTooDeep = errors.New("nested too deep")

// errNotAFile says that a name stands for something without content of its own.
var errNotAFile = errors.New("not a regular file")

// Check refuses paths no file system takes; `invalid_path`.
func Check(text string) *wire.Problem {
	broken := text == "" || len(text) > maxPathBytes || strings.ContainsRune(text, 0)
	for part := range strings.SplitSeq(text, "/") {
		broken = broken || len(part) > maxNameBytes
	}
	if broken {
		return wire.Fail("invalid_path", "a path of 1 to %d bytes without NUL, each part at most %d", maxPathBytes, maxNameBytes)
	}
	return nil
}

// open resolves a path as the calling thread's user would. Links are followed, but not the kernel's own in /proc: through
// them a user would reach what the guest holds open for others.
func open(full string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, full, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// below opens a path that must not leave a directory, nor go through any link; ELOOP and EXDEV otherwise.
func below(dir int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openDirectory opens a directory by its name in another, and no link to one: ENOTDIR. gVisor follows a last link where
// O_DIRECTORY is asked for together with O_NOFOLLOW, so what is there is held first, as it is, and then looked at.
func openDirectory(dir int, name string) (int, error) {
	held, err := hold(dir, name)
	if err != nil {
		return -1, err
	}
	defer unix.Close(held)
	return reopen(held, unix.O_RDONLY|unix.O_DIRECTORY)
}

// hold returns a descriptor that stands for a directory, and only for naming it; ENOTDIR for anything else.
func hold(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var status unix.Stat_t
	err = unix.Fstat(fd, &status)
	if err == nil && status.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// reopen opens again what a descriptor stands for, with the rights of the calling thread's user.
func reopen(fd, flags int) (int, error) {
	return unix.Open(ownPath(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
}

// ownPath is a path that leads to exactly what a descriptor stands for.
func ownPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// place is the last part of a path in the directory that holds it.
type place struct {
	dir  int
	name string
}

func (p place) close() { unix.Close(p.dir) }

// parent opens the directory of a path's last part. Without a last part there is nothing that could be made, moved or
// removed: EISDIR.
func parent(full string) (place, error) {
	dir, name := path.Split(strings.TrimRight(full, "/"))
	if name == "" || name == "." || name == ".." {
		return place{}, unix.EISDIR
	}
	fd, err := open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	return place{fd, name}, err
}

// makeParents makes what is missing of an absolute directory path.
func makeParents(dir string) error {
	for end := 1; end < len(dir); end++ {
		if dir[end] != '/' || dir[end-1] == '/' {
			continue
		}
		if err := makeDirectory(dir[:end]); err != nil {
			return err
		}
	}
	return nil
}

func makeDirectory(dir string) error {
	if present, err := open(dir, unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
		unix.Close(present)
		return nil
	} else if !errors.Is(err, unix.ENOENT) {
		return err
	}
	at, err := parent(dir)
	if err != nil {
		return err
	}
	defer at.close()
	if err := unix.Mkdirat(at.dir, at.name, newDirMode); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// tidy returns a path without empty and `.` parts. One with `..` is what the descriptor says: a link may lie before it.
func tidy(full string, fd int) string {
	if !slices.Contains(strings.Split(full, "/"), "..") {
		return path.Clean(full)
	}
	if real, err := os.Readlink(ownPath(fd)); err == nil {
		return real
	}
	return full
}

// names lists a directory, sorted by bytes.
func names(dir int) ([]string, error) {
	var found []string
	buffer := make([]byte, 64*1024)
	for {
		count, err := unix.ReadDirent(dir, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if count <= 0 {
			slices.Sort(found)
			return found, nil
		}
		_, _, found = unix.ParseDirent(buffer[:count], -1, found)
	}
}

var codes = []struct {
	code string
	ones []error
}{
	{"file_not_found", []error{unix.ENOENT}},
	{"not_a_directory", []error{unix.ENOTDIR}},
	{"permission_denied", []error{unix.EACCES, unix.EPERM, unix.EROFS}},
	{"is_directory", []error{unix.EISDIR}},
	{"already_exists", []error{unix.EEXIST}},
	{"directory_not_empty", []error{unix.ENOTEMPTY}},
	{"in_use", []error{unix.EBUSY, unix.ETXTBSY}},
	{"disk_full", []error{unix.ENOSPC, unix.EDQUOT, unix.EFBIG}},
}

// explain says in the protocol's words what the system refused.
func explain(name string, err error) *wire.Problem {
	if problem := (*wire.Problem)(nil); errors.As(err, &problem) {
		return problem
	}
	for _, row := range codes {
		for _, one := range row.ones {
			if errors.Is(err, one) {
				return wire.Fail(row.code, "%s: %v", name, err)
			}
		}
	}
	// Whatever else a user's path comes to is about that path; only what is no answer of the system is a fault of ours.
	if number := unix.Errno(0); errors.As(err, &number) || errors.Is(err, errTooDeep) || errors.Is(err, errNotAFile) {
		return wire.Fail("invalid_path", "%s: %v", name, err)
	}
	return wire.Fail("internal", "%s: %v", name, err)
}
