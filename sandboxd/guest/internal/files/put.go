// Package files works on the sandbox's files with the rights of one of its users, never with the guest's own.
package files

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

const (
	maxPathBytes = 4096
	maxNameBytes = 255
	newFileMode  = 0o644
	newDirMode   = 0o755
)

// as runs a function on a thread that holds exactly the user's rights. The thread is not used again: the runtime ends it
// with its goroutine, because a locked goroutine that returns takes its thread along.
func as(user identity.User, do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := become(user); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}

// become uses the raw calls: the usual ones change every thread of the program.
func become(user identity.User) error {
	if os.Geteuid() != 0 {
		return nil
	}
	groups := user.Groups
	if len(groups) == 0 {
		groups = []uint32{user.GID}
	}
	if err := setGroups(groups); err != nil {
		return err
	}
	gid, uid := uintptr(user.GID), uintptr(user.UID)
	if _, _, failed := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); failed != 0 {
		return failed
	}
	if _, _, failed := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); failed != 0 {
		return failed
	}
	return nil
}

// Upload is a file being written aside, in the directory it will appear in.
type Upload struct {
	user identity.User
	dir  int
	name string
	temp string
	mode uint32
	file *os.File
	// Replaces says that a file of this name was there.
	Replaces bool
}

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

// Begin opens an upload with the user's rights; parents are made where asked. A nil mode keeps the present one, or 0644.
// Links on the way are the user's to follow; the last part is replaced, never followed.
func Begin(user identity.User, full string, mode *uint32, parents bool) (*Upload, *wire.Problem) {
	if problem := Check(full); problem != nil {
		return nil, problem
	}
	dir, name := path.Split(full)
	if name == "" || name == "." || name == ".." {
		return nil, wire.Fail("is_directory", "%q names a directory", full)
	}
	upload := &Upload{user: user, dir: -1, name: name, temp: ".sandlot-" + rand.Text(), mode: newFileMode}
	err := as(user, func() error { return upload.open(dir, mode, parents) })
	if err != nil {
		upload.closeDir()
		return nil, explain(full, err)
	}
	return upload, nil
}

func (u *Upload) open(dir string, mode *uint32, parents bool) error {
	if parents {
		if err := makeParents(dir); err != nil {
			return err
		}
	}
	var err error
	if u.dir, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	var present unix.Stat_t
	if err := unix.Fstatat(u.dir, u.name, &present, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		u.Replaces = true
		switch present.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			return unix.EISDIR
		case unix.S_IFREG:
			u.mode = present.Mode & 0o777
		}
	}
	if mode != nil {
		u.mode = *mode
	}
	fd, err := unix.Openat(u.dir, u.temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	u.file = os.NewFile(uintptr(fd), u.temp)
	return nil
}

// makeParents makes what is missing of an absolute directory path.
func makeParents(dir string) error {
	for end := 1; end < len(dir); end++ {
		if dir[end] != '/' {
			continue
		}
		err := unix.Mkdir(dir[:end], newDirMode)
		if err == nil || errors.Is(err, unix.EEXIST) {
			continue
		}
		// A directory that is there may refuse the attempt for another reason.
		var present unix.Stat_t
		if unix.Stat(dir[:end], &present) != nil {
			return err
		}
	}
	return nil
}

// Fill writes the whole body. Its errors are the file's, not the body's: those are returned as they are.
func (u *Upload) Fill(body io.Reader) (size int64, bodyErr error, problem *wire.Problem) {
	source := &watched{from: body}
	size, err := io.Copy(u.file, source)
	if source.failed != nil {
		return size, source.failed, nil
	}
	if err != nil {
		return size, nil, explain(u.name, err)
	}
	return size, nil, nil
}

type watched struct {
	from   io.Reader
	failed error
}

func (w *watched) Read(into []byte) (int, error) {
	count, err := w.from.Read(into)
	if err != nil && !errors.Is(err, io.EOF) {
		w.failed = err
	}
	return count, err
}

// Commit makes the file appear under its name, at once and whole.
func (u *Upload) Commit() *wire.Problem {
	defer u.closeDir()
	err := as(u.user, func() error {
		if err := unix.Fchmod(int(u.file.Fd()), u.mode); err != nil {
			return err
		}
		return unix.Renameat(u.dir, u.temp, u.dir, u.name)
	})
	closed := u.file.Close()
	if err == nil {
		err = closed
	}
	if err != nil {
		u.unlink()
		return explain(u.name, err)
	}
	return nil
}

// Abort leaves nothing.
func (u *Upload) Abort() {
	u.file.Close()
	u.unlink()
	u.closeDir()
}

func (u *Upload) unlink() {
	_ = as(u.user, func() error { return unix.Unlinkat(u.dir, u.temp, 0) })
}

func (u *Upload) closeDir() {
	if u.dir >= 0 {
		unix.Close(u.dir)
		u.dir = -1
	}
}

func explain(name string, err error) *wire.Problem {
	code := "internal"
	for _, row := range []struct {
		code string
		ones []error
	}{
		{"file_not_found", []error{unix.ENOENT}},
		{"not_a_directory", []error{unix.ENOTDIR}},
		{"permission_denied", []error{unix.EACCES, unix.EPERM, unix.EROFS}},
		{"is_directory", []error{unix.EISDIR, unix.EEXIST}},
		{"disk_full", []error{unix.ENOSPC, unix.EDQUOT}},
		{"invalid_path", []error{unix.ELOOP, unix.ENAMETOOLONG, unix.EINVAL}},
	} {
		for _, one := range row.ones {
			if errors.Is(err, one) {
				code = row.code
			}
		}
	}
	return wire.Fail(code, "%s: %v", name, err)
}
