package files

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

const (
	newFileMode = 0o644
	newDirMode  = 0o755
	copyBytes   = 256 * 1024
)

// renaming is held from the last look at what is replaced to its replacement: of two conditional writes one wins.
var renaming sync.Mutex

// Wanted says how a file is to be written. A nil Mode keeps the present one, or means 0644.
type Wanted struct {
	Mode            *uint32
	Parents, Append bool
	Match, NonMatch string
}

// Upload is a file being written aside, in the directory it will appear in; or one that is appended to.
type Upload struct {
	user   identity.User
	wanted Wanted
	at     place
	full   string
	temp   string
	file   *os.File

	// mode and owner are what the file is given before it appears.
	mode  uint32
	owner *[2]int

	// Replaces says that a file of this name was there.
	Replaces bool
}

// Begin opens an upload with the user's rights. Links on the way are the user's to follow; the last part is replaced, never
// followed, unless it is appended to.
func Begin(user identity.User, full string, wanted Wanted) (*Upload, *wire.Problem) {
	if problem := Check(full); problem != nil {
		return nil, problem
	}
	upload := &Upload{user: user, wanted: wanted, at: place{dir: -1}, full: full, mode: newFileMode}
	err := as(user, func() error {
		if last := path.Base(full); full[len(full)-1] == '/' || last == "." || last == ".." {
			return unix.EISDIR
		}
		if wanted.Parents {
			if err := makeParents(path.Dir(full) + "/"); err != nil {
				return err
			}
		}
		if wanted.Append {
			return upload.openForAppending()
		}
		return upload.openAside()
	})
	if err != nil {
		upload.closeDir()
		return nil, explain(full, err)
	}
	return upload, nil
}

const (
	asideNew  = ".sandlot-new-"
	asideOver = ".sandlot-over-"
)

// aside makes up the name of a file while it is written. It tells a watch what its rename will mean.
func aside(replaces bool) string {
	if replaces {
		return asideOver + rand.Text()
	}
	return asideNew + rand.Text()
}

// appearing is what a rename from a name means to a watch: "create" or "write" for one of `aside`, else "".
func appearing(name string) string {
	switch base := path.Base(name); {
	case strings.HasPrefix(base, asideNew):
		return "create"
	case strings.HasPrefix(base, asideOver):
		return "write"
	}
	return ""
}

func (u *Upload) openAside() error {
	var err error
	if u.at, err = parent(u.full); err != nil {
		u.at.dir = -1
		return err
	}
	present, err := u.present()
	if err != nil {
		return err
	}
	if present != nil {
		u.Replaces = true
		if err := u.keep(present); err != nil {
			return err
		}
	}
	if u.wanted.Mode != nil {
		u.mode = *u.wanted.Mode
	}
	u.temp = aside(u.Replaces)
	fd, err := unix.Openat(u.at.dir, u.temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	u.file = os.NewFile(uintptr(fd), u.temp)
	return nil
}

// present looks at what would be replaced, nil if there is nothing, and refuses what the caller did not expect.
func (u *Upload) present() (*unix.Stat_t, error) {
	var status unix.Stat_t
	tag := ""
	err := unix.Fstatat(u.at.dir, u.at.name, &status, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		tag = tagOf(&status)
	case !errors.Is(err, unix.ENOENT):
		return nil, err
	}
	if problem := u.wanted.conditions(u.full, tag); problem != nil {
		return nil, problem
	}
	if err != nil {
		return nil, nil
	}
	return &status, nil
}

func (w Wanted) conditions(full, tag string) *wire.Problem {
	if (w.Match != "" && !Matches(w.Match, tag)) || (w.NonMatch != "" && Matches(w.NonMatch, tag)) {
		return wire.Fail("generation_mismatch", "%s is not as it was expected to be", full).With("etag", tag)
	}
	return nil
}

// keep takes over mode and owner of a file, as far as the user may give them.
func (u *Upload) keep(present *unix.Stat_t) error {
	switch present.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFREG:
		u.mode = present.Mode & 0o7777
		if present.Uid != u.user.UID || present.Gid != u.user.GID {
			u.owner = &[2]int{int(present.Uid), int(present.Gid)}
		}
	case unix.S_IFLNK:
	default:
		return errNotAFile
	}
	return nil
}

func (u *Upload) openForAppending() error {
	u.at.dir = -1
	fd, err := open(u.full, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		return u.createForAppending()
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	u.Replaces = true
	var status unix.Stat_t
	if err := unix.Fstat(fd, &status); err != nil {
		return err
	}
	if problem := u.wanted.conditions(u.full, tagOf(&status)); problem != nil {
		return problem
	}
	switch status.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFREG:
	default:
		return errNotAFile
	}
	opened, err := reopen(fd, unix.O_WRONLY|unix.O_APPEND)
	if err != nil {
		return err
	}
	u.file = os.NewFile(uintptr(opened), u.full)
	if u.wanted.Mode != nil {
		return unix.Fchmod(opened, *u.wanted.Mode)
	}
	return nil
}

func (u *Upload) createForAppending() error {
	if problem := u.wanted.conditions(u.full, ""); problem != nil {
		return problem
	}
	fd, err := open(u.full, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK, newFileMode)
	if err != nil {
		return err
	}
	u.file = os.NewFile(uintptr(fd), u.full)
	if u.wanted.Mode != nil {
		return unix.Fchmod(fd, *u.wanted.Mode)
	}
	return nil
}

// Fill writes the whole body. Its errors are the file's, not the body's: those are returned as they are.
func (u *Upload) Fill(body io.Reader) (size int64, bodyErr error, problem *wire.Problem) {
	source := &watched{from: body}
	size, err := copyInto(u.file, source)
	if source.failed != nil {
		return size, source.failed, nil
	}
	if err != nil {
		return size, nil, explain(u.full, err)
	}
	return size, nil, nil
}

var copyBuffers = sync.Pool{New: func() any { buffer := make([]byte, copyBytes); return &buffer }}

// copyInto copies in large pieces: each costs a call of the system on both sides.
func copyInto(to io.Writer, from io.Reader) (int64, error) {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *buffer)
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
func (u *Upload) Commit(names *Names) (info wire.FileInfo, problem *wire.Problem) {
	defer u.closeDir()
	err := as(u.user, func() (err error) {
		if u.temp != "" {
			if err := u.appear(); err != nil {
				return err
			}
		}
		info, err = describe(names, tidy(u.full, int(u.file.Fd())), int(u.file.Fd()))
		return err
	})
	closed := u.file.Close()
	if err == nil {
		err = closed
	}
	if err != nil {
		u.unlink()
		return info, explain(u.full, err)
	}
	return info, nil
}

func (u *Upload) appear() error {
	fd := int(u.file.Fd())
	if u.owner != nil && unix.Fchown(fd, u.owner[0], u.owner[1]) != nil {
		// It becomes the user's own: what it could do in its owner's name it must not do in another's.
		u.mode &= 0o777
		_ = unix.Fchown(fd, -1, u.owner[1])
	}
	if err := unix.Fchmod(fd, u.mode); err != nil {
		return err
	}
	renaming.Lock()
	defer renaming.Unlock()
	if u.wanted.Match == "" && u.wanted.NonMatch == "" {
		return unix.Renameat(u.at.dir, u.temp, u.at.dir, u.at.name)
	}
	present, err := u.present()
	if err != nil {
		return err
	}
	flags := uint(0)
	if present == nil {
		flags = unix.RENAME_NOREPLACE
	}
	err = unix.Renameat2(u.at.dir, u.temp, u.at.dir, u.at.name, flags)
	if errors.Is(err, unix.EEXIST) {
		return wire.Fail("generation_mismatch", "%s has just appeared", u.full).With("etag", "")
	}
	return err
}

// Abort leaves nothing, but what was appended.
func (u *Upload) Abort() {
	u.file.Close()
	u.unlink()
	u.closeDir()
}

func (u *Upload) unlink() {
	if u.temp != "" {
		_ = as(u.user, func() error { return unix.Unlinkat(u.at.dir, u.temp, 0) })
	}
}

func (u *Upload) closeDir() {
	if u.at.dir >= 0 {
		u.at.close()
		u.at.dir = -1
	}
}
